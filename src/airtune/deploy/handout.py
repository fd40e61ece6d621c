"""The base model of a run, handed out by the server to devices that lack it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from airtune.engine.allowance import Allowance
from airtune.engine.flower.split import Serve
from airtune.engine.stage import Offer, base_files
from airtune.engine.stream import FETCHES, Shelf
from airtune.errors import DeploymentError
from airtune.recipe import EMBEDDED, Recipe
from airtune.run.build import base_folder

STAGING_BPS = 1e6
"""A device whose link is slower is not waited for; what it has fetched by then is kept."""
LULL_S = 300.0
"""How long after the last byte somebody may still be fetching, or loading what was fetched."""


@dataclass(frozen=True, slots=True)
class Handout:
    """One offer a device, each with a token of its own."""

    shelf: Shelf
    offers: Mapping[int, Offer]

    @property
    def patience_s(self) -> float:
        """How much longer than usual devices are waited for at most, while any fetches."""
        turns = math.ceil(len(self.offers) / FETCHES)
        return turns * 8.0 * max(offer.size_bytes for offer in self.offers.values()) / STAGING_BPS

    def is_fetching(self) -> bool:
        """Return whether any device was sent something lately."""
        return any(self.shelf.idle_s(offer.token) < LULL_S for offer in self.offers.values())

    def served_bytes(self) -> dict[int, int]:
        """Return what each device has been sent so far."""
        return {
            device: self.shelf.served_bytes(offer.token) for device, offer in self.offers.items()
        }


def open_handout(
    recipe: Recipe, serve: Serve | None, allowance: Allowance, *, devices: int, silent_s: float
) -> Handout | None:
    """Offer the base to every device of a run; None where devices must have it or it is shipped.

    Args:
        recipe: says whether.
        serve: starts the stream.
        allowance: what each device may be sent; asked for every chunk.
        devices: how many there are.
        silent_s: how long the server waits for a silent device, and a device for the server.

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
        device: Offer(
            address,
            server.shelf.lend(folder, files, take=partial(allowance.take, device)),
            files,
            wait_s=silent_s,
        )
        for device in range(devices)
    }
    return Handout(server.shelf, offers)
