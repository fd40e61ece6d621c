"""The base model of a run: who is to hold what of it, and its download from the server."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from airtune.cost import blocks_held
from airtune.engine.remote.answers import Answer
from airtune.engine.remote.devices import Remote
from airtune.engine.remote.split import Serve
from airtune.engine.stream import FETCHES, Shelf
from airtune.errors import DeploymentError, MismatchError
from airtune.model.gguf.source import is_gguf
from airtune.model.part import group_of
from airtune.plan import Floats, Ints, Problem
from airtune.recipe import EMBEDDED, Recipe
from airtune.run.load import base_folder
from airtune.units import format_bytes
from airtune.wire.contents import contents_of
from airtune.wire.message import More
from airtune.wire.stage import Offer
from airtune.wire.traffic_budget import TrafficBudget

STAGING_BPS = 1e6
"""A device whose link is slower is not waited for; what it has fetched by then is kept."""
LULL_S = 300.0
"""How long after the last byte somebody may still be fetching, or loading what was fetched."""


BLOCK_BYTES = 8 << 20
"""Set aside of a device's month at a time, as what is set aside is written to a disk."""


class Block:
    """What was set aside of a device's month to fetch, and has not gone out yet."""

    def __init__(self, traffic_budget: TrafficBudget, device: int) -> None:
        """Set nothing aside yet."""
        self._traffic_budget, self._device = traffic_budget, device
        self._left_bytes, self._lock = 0, threading.Lock()

    def take(self, size_bytes: int) -> bool:
        """Count bytes that are about to go out; False if the month does not hold them."""
        with self._lock:
            missing = size_bytes - self._left_bytes
            if missing > 0:
                sizes = (max(BLOCK_BYTES, missing), missing)
                held = next(
                    (size for size in sizes if self._traffic_budget.take(self._device, size)), 0
                )
                if not held:
                    return False
                self._left_bytes += held
            self._left_bytes -= size_bytes
            return True

    def give_back(self) -> None:
        """Count no more than went out."""
        with self._lock:
            self._traffic_budget.spend(
                np.array([self._device]), np.array([-float(self._left_bytes)])
            )
            self._left_bytes = 0


@dataclass(frozen=True, slots=True)
class BaseDownload:
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


def offer_base(
    recipe: Recipe,
    serve: Serve | None,
    traffic_budget: TrafficBudget,
    *,
    devices: int,
    silent_s: float,
) -> BaseDownload | None:
    """Offer the base to every device of a run; None where devices must have it or it is shipped.

    Args:
        recipe: says whether.
        serve: starts the stream.
        traffic_budget: what each device may be sent; asked for every few megabytes.
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
    blocks = tuple(Block(traffic_budget, device) for device in range(devices))
    offers = {
        device: Offer(address, server.shelf.lend(contents, take=block.take), files, wait_s=silent_s)
        for device, block in enumerate(blocks)
    }
    return BaseDownload(server.shelf, offers, blocks)


Ask = Callable[[dict[int, int | None]], dict[int, Answer]]
"""Has devices hold so many blocks, None for all, and returns their answers."""


def asking(
    remote: Remote, names: Sequence[str], download: BaseDownload | None, tell: Callable[..., None]
) -> Ask:
    """Return what has devices hold a part of the base, for which they may fetch it."""
    if download is None:
        return remote.join
    more = More(download.patience_s, download.is_fetching)

    def ask(blocks: dict[int, int | None]) -> dict[int, Answer]:
        before = download.served_bytes()
        answers = remote.join(blocks, more=more)
        download.settle()
        for number, size_bytes in download.served_bytes().items():
            if size_bytes > before[number]:
                fetched = format_bytes(size_bytes - before[number])
                tell(note=f"{names[number]} fetched {fetched} of the base model")
        return answers

    return ask


def have_held(
    ask: Ask,
    problem: Problem,
    memory_bytes: Floats,
    names: Sequence[str],
    *,
    cut: int | None,
    tell: Callable[..., None],
) -> frozenset[int]:
    """Have each device with data load its part; returns those that have it.

    Args:
        ask: reaches them.
        problem: of the run.
        memory_bytes: of each device, shape (devices,).
        names: of the devices.
        cut: blocks on every device, where the method fixes them.
        tell: told who holds what, and who cannot.

    Raises:
        MismatchError: if nobody has it.
    """
    total = problem.shape.blocks
    held = blocks_held(problem, memory_bytes, cut=cut)
    asked = np.flatnonzero(problem.devices.samples).tolist()
    tell(note=_told(names, held, asked, total))
    wanted = {one: None if held[one] == total else int(held[one]) for one in asked}
    answers = ask(wanted)
    refused = {one: answer.fault for one, answer in answers.items() if answer.status != "ok"}
    for one, fault in refused.items():
        tell(device=names[one], refused=fault)
    if len(refused) == len(asked):
        faults = "; ".join(f"{names[one]}: {fault}" for one, fault in refused.items())
        raise MismatchError(f"no device can take part: {faults}")
    return frozenset(asked) - refused.keys()


def _told(names: Sequence[str], held: Ints, asked: Sequence[int], total: int) -> str:
    """Return in words what devices are to hold.

    >>> _told(["a", "b"], np.array([4, 1]), [0, 1], 4)
    'of the model, a holds all 4 blocks; b holds the first 1'
    """
    parts = [
        f"{names[one]} holds {f'all {total} blocks' if held[one] == total else f'the first {held[one]}'}"
        for one in asked
    ]
    return f"of the model, {'; '.join(parts)}"
