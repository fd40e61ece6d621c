"""A device takes the base model where it has it, or from the server that offers it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from airtune.engine.stage import Offer, stage_base, staged
from airtune.engine.stream import channel_credentials, fetcher
from airtune.errors import MismatchError
from airtune.recipe import EMBEDDED, Recipe

if TYPE_CHECKING:
    from airtune.deploy.device import DeviceSettings

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def fetch_base(
    offer: Offer, fingerprint: str, recipe: Recipe, settings: DeviceSettings
) -> Path | None:
    """Return the folder of a base that the server handed out, now or before.

    A base that was staged before is taken first, and what has changed of it fetched anew; then what
    this device has itself by the recipe's name, for which None is returned; only then is it fetched.

    Args:
        offer: the server's.
        fingerprint: of the base's weights at the server.
        recipe: names the base.
        settings: the owner's.

    Raises:
        MismatchError: if it is to be fetched and this device keeps none, or the server refuses.
        ConnectionFailedError: if it does not come; what has come is kept.
        CodecError: if what comes is damaged and stays so.
        StorageError: if the disk is full.
    """
    is_staged = settings.cache is not None and staged(settings.cache, fingerprint) is not None
    if not is_staged and is_here(recipe):
        return None
    if settings.cache is None:
        raise MismatchError(
            f"this device lacks the model {recipe.model.source} and keeps none that the server "
            "hands out; give --model a folder"
        )
    credentials = None
    if settings.authority is not None:
        credentials = channel_credentials(settings.authority.read_bytes())
    ask = fetcher(reached(offer.address, settings.host), offer, credentials)
    return stage_base(settings.cache, fingerprint, offer.files, ask, wait_s=offer.wait_s)


def is_here(recipe: Recipe) -> bool:
    """Return whether a device has a recipe's base: shipped, a folder, or from the hub before."""
    source = recipe.model.source
    if source == EMBEDDED or Path(source).expanduser().is_dir():
        return True
    try:
        found = (try_to_load_from_cache(source, name, revision=recipe.model.revision)
                 for name in _WEIGHTS)  # fmt: skip
        return any(isinstance(path, str) for path in found)
    except HFValidationError:
        return False  # a path that is not here, and no hub id either


def reached(address: str, host: str) -> str:
    """Return where a device finds what its task names; `:PORT` is at the server it knows.

    >>> reached(":9444", "edge"), reached("10.0.0.1:9444", "edge")
    ('edge:9444', '10.0.0.1:9444')
    """
    return f"{host or '127.0.0.1'}{address}" if address.startswith(":") else address
