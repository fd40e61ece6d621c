"""The base model of a run, handed out by the server to devices that lack it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from airtune.engine.flower.split import Serve
from airtune.engine.stage import Offer, base_files
from airtune.engine.stream import Shelf
from airtune.errors import DeploymentError, ModelError
from airtune.recipe import EMBEDDED, Recipe
from airtune.run.build import model_source

STAGING_BPS = 1e6
"""A device whose link is slower is not waited for; what it has fetched by then is kept."""


@dataclass(frozen=True, slots=True)
class Handout:
    """One offer a device, each with a token of its own."""

    shelf: Shelf
    offers: Mapping[int, Offer]

    @property
    def patience_s(self) -> float:
        """How much longer than usual devices are waited for that may be fetching."""
        return 8.0 * max(offer.size_bytes for offer in self.offers.values()) / STAGING_BPS

    def served_bytes(self) -> dict[int, int]:
        """Return what each device has been sent so far."""
        return {
            device: self.shelf.served_bytes(offer.token) for device, offer in self.offers.items()
        }


def open_handout(
    recipe: Recipe, serve: Serve | None, most_bytes: Sequence[float]
) -> Handout | None:
    """Offer the base to every device of a run; None where devices must have it or it is shipped.

    Args:
        recipe: says whether.
        serve: starts the stream.
        most_bytes: what each device may be sent.

    Raises:
        ModelError: if the base cannot be handed out.
        DeploymentError: if this server has no stream.
    """
    if recipe.model.stage == "none" or recipe.model.source == EMBEDDED:
        return None
    if serve is None:
        raise DeploymentError(
            "model.stage is server, but this server has no stream to hand a base model out by; run "
            "it under airtune server start, or set model.stage to none"
        )
    folder = base_folder(recipe)
    files = base_files(folder)
    server, address = serve()
    offers = {
        device: Offer(address, server.shelf.lend(folder, files, most_bytes=most), files)
        for device, most in enumerate(most_bytes)
    }
    return Handout(server.shelf, offers)


def base_folder(recipe: Recipe) -> Path:
    """Return where this machine has a recipe's base.

    Raises:
        ModelError: if it has it neither as a folder nor from the hub.
    """
    source = model_source(recipe)
    if Path(source).is_dir():
        return Path(source)
    found = try_to_load_from_cache(source, "config.json", revision=recipe.model.revision)
    if not isinstance(found, str):
        raise ModelError(f"the server has no files of {source!r} to hand out; give it a folder")
    return Path(found).parent
