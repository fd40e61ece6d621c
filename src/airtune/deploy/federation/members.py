"""Who takes part in a run over real devices: waited for, numbered, and asked what they have."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from airtune.deploy import ROSTER
from airtune.deploy.federation.base_download import Ask
from airtune.deploy.federation.orders import Order
from airtune.deploy.federation.roster import Roster
from airtune.engine.message import Joined
from airtune.engine.remote.answers import Answer
from airtune.errors import CheckpointError, ConnectionFailedError, MismatchError
from airtune.recipe import Recipe, fleet_of
from airtune.run import new_folder
from airtune.wire.message import Transport

Tell = Callable[..., None]


class Connected(Protocol):
    """The devices that a server reaches, by the names it knows them by."""

    def connected(self) -> Mapping[str, int]:
        """Return the node of every device that is online."""
        ...

    def transport(self, locate: Callable[[], Mapping[int, int]]) -> Transport:
        """Return the way to devices; `locate` returns the node of each that is there."""
        ...


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run folder, new or old."""

    path: Path
    is_new: bool
    roster: Roster | None


class RunDevices:
    """Which node each device of the run is, if it is there and may take part."""

    def __init__(self, nodes: Connected, names: Sequence[str]) -> None:
        self._nodes, self._names = nodes, names
        self.allowed = frozenset(range(len(names)))

    def located(self) -> Mapping[int, int]:
        """Return the node of every device that is online."""
        online = self._nodes.connected()
        return {
            number: online[name]
            for number, name in enumerate(self._names)
            if name in online and number in self.allowed
        }


def run_folder_of(order: Order) -> RunFolder:
    """Return the folder of an order's run, new or old.

    Raises:
        CheckpointError: if it is to be resumed and is no run of a federation, or damaged.
    """
    if order.resume is None:
        folder = new_folder(order.recipe, root=order.root).resolve()
        return RunFolder(folder, True, None)
    folder = order.resume if order.resume.is_absolute() else order.root / order.resume
    path = folder / ROSTER
    if not path.is_file():
        raise CheckpointError(f"{folder} is no run of a federation: it holds no {ROSTER}")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(None if row is None else Joined(**row) for row in said["joined"])
        return RunFolder(folder, False, Roster(tuple(said["names"]), rows))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it") from error


def wait_for(
    order: Order, run_folder: RunFolder, nodes: Connected, recipe: Recipe, tell: Tell
) -> tuple[str, ...]:
    """Wait for devices; returns the names of the run's, by number."""
    wanted = order.devices or 1
    if order.clock == "replay":
        fleet = fleet_of(recipe)
        wanted = len(fleet)
    until = time.monotonic() + order.join_s
    known = None
    while True:
        there = sorted(nodes.connected())
        if run_folder.roster is not None:
            there = [name for name in there if name in run_folder.roster.names]
        if len(there) != known:
            known = len(there)
            tell(stage=f"devices there: {known}, needed: {wanted}")
        if len(there) >= wanted:
            break
        if time.monotonic() > until:
            raise ConnectionFailedError(
                f"{len(there)} of {wanted} devices are there after {order.join_s:.0f} s "
                f"({', '.join(there) or 'none'}); start airtune agent on the others, or ask for "
                "fewer with --devices"
            )
        time.sleep(0.2)
    if run_folder.roster is not None:
        return run_folder.roster.names
    return tuple(there[:wanted] if order.clock == "replay" else there)


def join(ask: Ask, names: Sequence[str], *, blocks: int | None, tell: Tell) -> Roster:
    """Have the devices load model and data; those that do not fit are named and left out."""
    tell(stage=f"{len(names)} devices load model and data", devices=list(names))
    answers = ask(dict.fromkeys(range(len(names)), blocks))
    replies = [answers[number].reply for number in range(len(names))]
    joined = tuple(None if reply is None else reply.joined for reply in replies)
    for number, name in enumerate(names):
        answer: Answer = answers[number]
        if answer.status != "ok":
            tell(device=name, refused=answer.fault)
    if not any(item is not None and item.rows for item in joined):
        faults = "; ".join(
            f"{name}: {answers[number].fault or 'has no training data'}"
            for number, name in enumerate(names)
        )
        raise MismatchError(f"no device can take part: {faults}")
    return Roster(tuple(names), joined)
