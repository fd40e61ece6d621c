"""Asynchronous rounds: a round ends when enough updates have come.

A round plans for the devices that are free, tells them the newest state, and ends with the K-th
update that arrives from whomever; the others go on and count in a later round. An update that
began tau rounds ago is what it has changed since then, times 1 / sqrt(1 + tau), added to the state
of now:

    w_i = w_t + (v_i - w_(t - tau)) / sqrt(1 + tau)

and the method's aggregation takes the mean of these. Shares of a link are kept until an update has
arrived: who is told anew divides among themselves what is free. `BufferedEngine` is for the virtual
clock; `remote.buffered` has the same for devices on the real one.

Source: Federated Learning with Buffered Asynchronous Aggregation (Nguyen et al., arXiv 2106.06639),
its weight for staleness. Weights by data, slices and ranks, and shares of links are ours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from airtune.engine.base import Engine, Execution, Split
from airtune.engine.checks import Divide
from airtune.engine.devices import pack_devices, unpack_devices
from airtune.engine.gathered import under
from airtune.errors import CheckpointError
from airtune.model.state import DeviceState, GlobalState, Update
from airtune.plan import (
    Assignments,
    CodecSpec,
    Floats,
    LinkState,
    Observation,
    Problem,
    Results,
    RoundPlan,
)
from airtune.work.uploads import returned_of

_TOLD = ("prune_heads", "prune_ffn", "rank", "share", "local_steps")
_WHOLE = frozenset({"device", "rank", "local_steps", "samples", "rank_left"})
_OWN = frozenset({"done", "agreement", "agreement_noise"})
_SEEN = tuple(each.name for each in fields(Results) if each.name not in _OWN)


@dataclass(frozen=True, slots=True)
class InFlight:
    """A device's round that has not arrived yet, in plain values, and what it has changed."""

    device: int
    began: int
    """Round in which it was told."""
    arrives_s: float
    """When the server has its update, or knows that none comes; virtual time."""
    row: Mapping[str, float]
    seen: Mapping[str, float | str]
    fault: str
    reason: str
    bandwidth_hz: float
    memory_bytes: float
    change: Update | None
    """An update whose tensors are differences to what the device was told; None = none comes."""
    upload: CodecSpec | None = None
    """How it was coded; None = as the recipe says."""


class BufferedEngine:
    """An engine whose rounds end with the K-th update."""

    def __init__(self, inner: Engine, problem: Problem, *, buffer: int) -> None:
        """Have nothing in flight.

        Args:
            inner: trains devices and times them, on the virtual clock.
            problem: of the run, with the local work.
            buffer: updates with which a round ends, at least 1.
        """
        self._inner, self._problem, self._buffer = inner, problem, buffer
        self._flying: dict[int, InFlight] = {}

    def observe(self, round: int, time_s: float) -> Observation:
        """Return what the method may know; a device in flight is not free."""
        seen = self._inner.observe(round, time_s)
        free = seen.available.copy()
        free[list(self._flying)] = False
        return replace(seen, available=free)

    def execute(
        self, plan: RoundPlan, state: GlobalState, divide: Divide, *, start_s: float
    ) -> Execution:
        """Have the free devices begin, and wait for as many updates as the buffer holds.

        Raises:
            MethodError: if the plan gives out more of a link than there is.
        """
        taken = {device: entry.row["share"] for device, entry in self._flying.items()}
        plan = on_free_links(self._problem, plan, taken)

        def keep(links: LinkState, remaining_bytes: Floats) -> Floats:
            return plan.assignments.share

        done = self._inner.execute(plan, state, keep, start_s=start_s)
        for entry in begun(self._problem, plan, done):
            self._flying[entry.device] = entry
        arrived = self._arrived()
        for entry in arrived:
            del self._flying[entry.device]
        end_s = max([done.start_s, *(entry.arrives_s for entry in arrived)])
        found = arrived_in(
            self._problem,
            plan,
            done.state,
            arrived,
            start_s=done.start_s,
            end_s=end_s,
            left=len(self._flying),
        )
        return replace(found, setup=done.setup, learnt=done.learnt, is_coded=done.is_coded)

    def _arrived(self) -> list[InFlight]:
        """Return those that arrive until the buffer is full, or all."""
        order = sorted(self._flying.values(), key=lambda entry: (entry.arrives_s, entry.device))
        came = np.cumsum([entry.change is not None for entry in order])
        full = int(np.searchsorted(came, self._buffer)) + 1
        return order[:full]

    def over_cap(self, plan: RoundPlan, state: GlobalState) -> tuple[str, ...]:
        """Return why a row's device is over a limit; empty where it is within all."""
        return self._inner.over_cap(plan, state)

    def idle_until_s(self, time_s: float, idle_s: float) -> float:
        """Return when to look again where no device is free."""
        return self._inner.idle_until_s(time_s, idle_s)

    def evaluate(self, state: GlobalState, split: Split) -> Mapping[str, float]:
        """Return the quality of a model; off the clock."""
        return self._inner.evaluate(state, split)

    def snapshot(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what the engine remembers, and what is in flight."""
        return {**self._inner.snapshot(), **_packed(list(self._flying.values()))}

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a snapshot.

        Raises:
            CheckpointError: if it is not one of this engine.
        """
        flying = under(_PREFIX, arrays)
        self._inner.restore({k: v for k, v in arrays.items() if not k.startswith(_PREFIX)})
        self._flying = {entry.device: entry for entry in _unpacked(flying)}

    def close(self) -> None:
        """Give back whatever is held."""
        self._inner.close()


def on_free_links(problem: Problem, plan: RoundPlan, taken: Mapping[int, float]) -> RoundPlan:
    """Return a plan whose shares are of what devices on their way leave of their links.

    Args:
        problem: of the run.
        plan: of the devices that begin.
        taken: the share that each device on its way has, by device.
    """
    devices, assignments = problem.devices, plan.assignments
    held = np.zeros(int(devices.link.max()) + 1)
    for device, has in taken.items():
        held[devices.link[device]] += has
    left = np.maximum(1.0 - held, 0.0)[devices.link[assignments.device]]
    alone = np.zeros(len(assignments), np.bool_)
    if devices.dedicated is not None:
        alone = devices.dedicated[assignments.device]
    share = np.where(alone, assignments.share, assignments.share * left)
    return replace(plan, assignments=replace(assignments, share=share))


def begun(problem: Problem, plan: RoundPlan, done: Execution) -> list[InFlight]:
    """Return the devices of a plan, with what each has changed of the state it was told."""
    updates = {update.device: update for update in done.updates}
    results, assignments = done.results, (done.plan or plan).assignments
    found = []
    for index, device in enumerate(assignments.device.tolist()):
        update = updates.get(device)
        found.append(
            InFlight(
                device,
                plan.round,
                done.start_s + _known_after_s(results, index, plan, problem),
                row={name: getattr(assignments, name)[index].item() for name in _TOLD},
                seen={name: _item(getattr(results, name), index) for name in _SEEN},
                fault=done.faults[index],
                reason=plan.reasons[index],
                bandwidth_hz=float(done.bandwidth_hz[index]),
                memory_bytes=float(done.memory_bytes[index]),
                change=None
                if update is None
                else _moved(update, _reference(problem, update, done.state), times=-1.0),
                upload=assignments.row(index).upload,
            )
        )
    return found


def _reference(problem: Problem, update: Update, state: GlobalState) -> Mapping[str, torch.Tensor]:
    """Return the tensors of a state that an update would give back unchanged."""
    return returned_of(state, problem.shape, update.kept, update.rank, cut=0, work=problem.work)


def _known_after_s(results: Results, row: int, plan: RoundPlan, problem: Problem) -> float:
    """Return after how many seconds the server knows what became of a device."""
    finish_s = float(results.finish_s[row])
    if math.isfinite(finish_s):
        return finish_s
    deadline_s = plan.deadline_of(problem)
    if deadline_s is not None and results.status[row] in ("late", "absent"):
        return deadline_s
    return float(np.nan_to_num(results.download_s[row]) + np.nan_to_num(results.compute_s[row]))


def arrived_in(
    problem: Problem,
    plan: RoundPlan,
    state: GlobalState,
    arrived: Sequence[InFlight],
    *,
    start_s: float,
    end_s: float,
    left: int,
) -> Execution:
    """Return a round of what has arrived in it, in rising order of devices.

    Args:
        problem: of the run.
        plan: of the devices that began in it.
        state: of now, to which changes are added.
        arrived: whenever they began, each device once.
        start_s: of the round.
        end_s: of the round.
        left: how many are on their way still.
    """
    arrived = sorted(arrived, key=lambda entry: entry.device)
    assignments = _told(arrived, problem)
    updates, stale = [], {}
    for entry in arrived:
        stale[problem.devices.names[entry.device]] = plan.round - entry.began
        if entry.change is not None:
            updates.append(_now(entry, plan.round, state, problem))
    columns: dict[str, Any] = {
        name: _column(name, [entry.seen[name] for entry in arrived]) for name in _SEEN
    }
    return Execution(
        results=Results(**columns, done=assignments),
        updates=tuple(updates),
        state=state,
        start_s=start_s,
        end_s=end_s,
        bandwidth_hz=np.array([entry.bandwidth_hz for entry in arrived]),
        memory_bytes=np.array([entry.memory_bytes for entry in arrived]),
        faults=tuple(entry.fault for entry in arrived),
        plan=RoundPlan(
            plan.round,
            assignments,
            tuple(entry.reason for entry in arrived),
            solution=plan.solution,
            notes=plan.notes,
            deadline_s=plan.deadline_s,
        ),
        buffered={"staleness": stale, "in_flight": left},
    )


def _now(entry: InFlight, round: int, state: GlobalState, problem: Problem) -> Update:
    """Return an update as one of the state of now: its change, weighted for its staleness."""
    if entry.change is None:
        raise CheckpointError(f"device {entry.device} has sent nothing")
    weight = 1.0 / math.sqrt(1.0 + round - entry.began)
    whole = replace(
        entry.change,
        round=round,
        adapters={name: weight * item for name, item in entry.change.adapters.items()},
        head={name: weight * item for name, item in entry.change.head.items()},
    )
    return _moved(whole, _reference(problem, whole, state), times=1.0)


def _moved(update: Update, by: Mapping[str, torch.Tensor], *, times: float) -> Update:
    """Return an update with tensors added to its own, by name."""

    def moved(own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: item + times * by[name].to(item) for name, item in own.items()}

    return replace(update, adapters=moved(update.adapters), head=moved(update.head))


def _told(entries: Sequence[InFlight], problem: Problem) -> Assignments:
    count = len(entries)
    columns: dict[str, Any] = {
        name: _column(name, [entry.row[name] for entry in entries]) for name in _TOLD
    }
    assignments = Assignments(
        device=np.array([entry.device for entry in entries], np.int64),
        **columns,
        cut=np.zeros(count, np.int64),
        codec_index=np.zeros(count, np.int64),
    )
    return assignments.coded_as([entry.upload for entry in entries], problem.workload.upload)


def _column(name: str, values: Sequence[float | str]) -> NDArray[Any]:
    if name == "status":
        return np.array(values, "<U7")
    return np.array(values, np.int64 if name in _WHOLE else np.float64)


def _item(column: NDArray[Any] | None, row: int) -> float | str:
    found: float | str = math.nan if column is None else column[row].item()
    return found


_PREFIX = "flight/"


def _packed(entries: Sequence[InFlight]) -> dict[str, NDArray[np.generic]]:
    """Return what is in flight as arrays; {} for nothing."""
    if not entries:
        return {}
    rows, arrays, kept = [], {}, {}
    for entry in entries:
        row = asdict(replace(entry, change=None))
        if entry.change is not None:
            kept[entry.device] = DeviceState(entry.change.kept)
            row["change"] = {
                "round": entry.change.round,
                "rank": entry.change.rank,
                "samples": entry.change.samples,
            }
            for group in ("adapters", "head"):
                for name, tensor in getattr(entry.change, group).items():
                    arrays[f"{_PREFIX}{entry.device}/{group}/{name}"] = tensor.cpu().numpy()
        rows.append(row)
    arrays[f"{_PREFIX}rows"] = np.frombuffer(json.dumps(rows).encode(), np.uint8)
    return arrays | {f"{_PREFIX}kept/{k}": v for k, v in pack_devices(kept).items()}


def _unpacked(arrays: Mapping[str, NDArray[np.generic]]) -> list[InFlight]:
    """Return what `_packed` was given.

    Raises:
        CheckpointError: if it is damaged.
    """
    if not arrays:
        return []
    try:
        kept = unpack_devices(under("kept/", arrays))
        found = []
        for row in json.loads(arrays["rows"].tobytes()):
            if "told" in row:  # as it was called in older checkpoints
                row["row"] = row.pop("told")
            change = None
            if row["change"] is not None:
                own = under(f"{row['device']}/", arrays)
                change = Update(
                    device=row["device"],
                    kept=kept[row["device"]].kept,
                    **row["change"],
                    adapters=_tensors("adapters/", own),
                    head=_tensors("head/", own),
                )
            upload = row.get("upload")
            row["upload"] = None if upload is None else CodecSpec(**upload)
            found.append(InFlight(**{**row, "change": change}))
        return found
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"what was in flight is damaged: {error}") from error


def _tensors(prefix: str, arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(np.array(v)) for k, v in under(prefix, arrays).items()}
