"""The base model of a run, handed out by the server to devices that lack it."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from airtune.engine.remote.split import Serve
from airtune.engine.stream import FETCHES, Shelf
from airtune.errors import DeploymentError
from airtune.model.gguf.source import is_gguf
from airtune.model.part import group_of
from airtune.recipe import EMBEDDED, Recipe
from airtune.run.build import base_folder
from airtune.wire.allowance import Allowance
from airtune.wire.contents import contents_of
from airtune.wire.stage import Offer

STAGING_BPS = 1e6
"""A device whose link is slower is not waited for; what it has fetched by then is kept."""
LULL_S = 300.0
"""How long after the last byte somebody may still be fetching, or loading what was fetched."""


BLOCK_BYTES = 8 << 20
"""Set aside of a device's month at a time, as what is set aside is written to a disk."""


class Block:
    """What was set aside of a device's month to fetch, and has not gone out yet."""

    def __init__(self, allowance: Allowance, device: int) -> None:
        """Set nothing aside yet."""
        self._allowance, self._device = allowance, device
        self._left_bytes, self._lock = 0, threading.Lock()

    def take(self, size_bytes: int) -> bool:
        """Count bytes that are about to go out; False if the month does not hold them."""
        with self._lock:
            missing = size_bytes - self._left_bytes
            if missing > 0:
                sizes = (max(BLOCK_BYTES, missing), missing)
                held = next((size for size in sizes if self._allowance.take(self._device, size)), 0)
                if not held:
                    return False
                self._left_bytes += held
            self._left_bytes -= size_bytes
            return True

    def give_back(self) -> None:
        """Count no more than went out."""
        with self._lock:
            self._allowance.spend(np.array([self._device]), np.array([-float(self._left_bytes)]))
            self._left_bytes = 0


@dataclass(frozen=True, slots=True)
class Handout:
    """One offer a device, each with a token of its own."""

    shelf: Shelf
    offers: Mapping[int, Offer]
    blocks: tuple[Block, ...] = ()

    @property
    def patience_s(self) -> float:
        """How much longer than usual devices are waited for at most, while any fetches."""
        turns = math.ceil(len(self.offers) / FETCHES)
        return turns * 8.0 * max(offer.size_bytes for offer in self.offers.values()) / STAGING_BPS

    def is_fetching(self) -> bool:
        """Return whether any device was sent something lately."""
        return any(self.shelf.idle_s(offer.token) < LULL_S for offer in self.offers.values())

    def settle(self) -> None:
        """Give back what was set aside and has not gone out."""
        for block in self.blocks:
            block.give_back()

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
        allowance: what each device may be sent; asked for every few megabytes.
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
    if is_gguf(recipe.model.source):
        raise DeploymentError(
            f"{recipe.model.source} is a GGUF file, which a server does not hand out; set model.stage to "
            "none and put the file on every device, or give model.source a folder"
        )
    folder = base_folder(recipe)
    contents = contents_of(folder, group_of)
    files = tuple(content.described() for content in contents)
    server, address = serve()
    blocks = tuple(Block(allowance, device) for device in range(devices))
    offers = {
        device: Offer(
            address,
            server.shelf.lend(contents, take=block.take),
            files,
            wait_s=silent_s,
        )
        for device, block in enumerate(blocks)
    }
    return Handout(server.shelf, offers, blocks)
