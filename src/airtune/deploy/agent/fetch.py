"""A device takes the base model where it has it, or from the server that offers it."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from airtune.errors import MismatchError
from airtune.recipe import EMBEDDED, Recipe
from airtune.wire.base import fetcher
from airtune.wire.channel import Way
from airtune.wire.stage import Offer, stage_base, staged

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def fetch_base(
    offer: Offer,
    fingerprint: str,
    recipe: Recipe,
    way: Way,
    cache: Path | None,
    *,
    groups: frozenset[str] | None = None,
) -> Path | None:
    """Return the folder of a base that the server handed out, now or before.

    A base that was staged before is taken first, and what has changed of it fetched anew; then what
    this device has itself by the recipe's name, for which None is returned; only then is it fetched.

    Args:
        offer: the server's.
        fingerprint: of the base's weights at the server.
        recipe: names the base.
        way: to the server.
        cache: where bases that servers hand out are kept; None = nowhere.
        groups: of tensors that are needed; None = all.

    Raises:
        MismatchError: if it is to be fetched and this device keeps none, or the server refuses.
        ConnectionFailedError: if it does not come; what has come is kept.
        CodecError: if what comes is damaged and stays so.
        StorageError: if the disk is full.
    """
    is_staged = cache is not None and staged(cache, fingerprint) is not None
    if not is_staged and is_here(recipe):
        return None
    if cache is None:
        raise MismatchError(
            f"this device lacks the model {recipe.model.source} and keeps none that the server "
            "hands out; give --model a folder"
        )
    ask = fetcher(way, offer)
    return stage_base(cache, fingerprint, offer.files, ask, groups=groups, wait_s=offer.wait_s)


def is_here(recipe: Recipe) -> bool:
    """Return whether a device has a recipe's base: shipped, a folder, or from the hub before."""
    source = recipe.model.source
    if source == EMBEDDED or Path(source).expanduser().is_dir():
        return True
    try:
        found = (
            try_to_load_from_cache(source, name, revision=recipe.model.revision)
            for name in _WEIGHTS
        )
        return any(isinstance(path, str) for path in found)
    except HFValidationError:
        return False  # a path that is not here, and no hub id either
