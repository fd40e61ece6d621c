"""A round of real devices in columns: what they report, and what was seen of their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from airtune.cost import energy_j, train_flops
from airtune.engine.base import Execution, ExpectedRound
from airtune.engine.forecast import MeasuredRound
from airtune.engine.remote.devices import Trained
from airtune.engine.timing import bandwidth_hz
from airtune.fleet.fleet import Fleet
from airtune.model.state import GlobalState
from airtune.plan import Assignment, Assignments, Floats, Problem, Results, RoundPlan
from airtune.work.downloads import Broadcast


@dataclass(frozen=True, slots=True)
class ReadyRound:
    """A round before anything of it is sent: n devices are told, those that hold it are asked."""

    plan: RoundPlan
    state: GlobalState
    """What the devices start from."""
    sent: Broadcast | None
    """That, coded; None = it is sent as it is."""
    begin_s: float
    faults: tuple[str, ...]
    """Why a device is not asked; empty where it is, (n,)."""
    rows: tuple[Assignment, ...]
    """Of those that are asked."""
    upload_bps: Mapping[int, float]
    """What each device's share of its link carries, where that is known."""
    peak_bytes: Floats
    """Planned, (n,)."""
    predicted_s: Floats
    """When each was predicted to finish, (n,)."""
    expected: ExpectedRound | None


@dataclass(frozen=True, slots=True)
class CarriedOut:
    """What came of a round that was ready."""

    done: Mapping[int, Trained]
    """By device, of all that were asked."""
    split: Mapping[str, object] | None
    """What a record holds of cuts; None where nothing was cut."""
    took_s: float


def execution_of(
    problem: Problem, fleet: Fleet, ready: ReadyRound, plan: RoundPlan, carried: CarriedOut
) -> Execution:
    """Return what came of a round.

    Args:
        problem: of the run.
        fleet: memory and links as declared.
        ready: the round as it began.
        plan: as it was done.
        carried: what came.
    """
    assignments, begin_s = plan.assignments, ready.begin_s
    trained = [carried.done.get(device) for device in assignments.device.tolist()]
    status = np.array([status_of(item) for item in trained])
    return Execution(
        results=results_of(
            problem, plan, trained, status, took_s=carried.took_s, predicted_s=ready.predicted_s
        ),
        updates=tuple(
            item.outcome.update
            for item in trained
            if item is not None and item.outcome.update is not None
        ),
        state=ready.state,
        start_s=begin_s,
        end_s=begin_s + carried.took_s,
        bandwidth_hz=bandwidth_hz(fleet.links_at(plan.round, 0, begin_s), plan),
        memory_bytes=fleet.memory_bytes[assignments.device],
        faults=tuple(
            fault if item is None else item.answer.fault
            for fault, item in zip(ready.faults, trained, strict=True)
        ),
    )


def status_of(item: Trained | None) -> str:
    """Return what became of a device; None = it was not asked."""
    if item is None:
        return "failed"
    return item.answer.status if item.outcome.update is None else "ok"


def seen_of(assignments: Assignments, done: Mapping[int, Trained]) -> MeasuredRound:
    """Return what was measured of a round's devices, in columns; NaN where nothing was, (n,)."""
    columns = {
        name: np.full(len(assignments), np.nan)
        for name in ("finish_s", "download_s", "work_s", "upload_s", "judging_s", "loading_s")
    }
    for index, device in enumerate(assignments.device.tolist()):
        answer = done[device].answer if device in done else None
        if answer is None or answer.status != "ok" or answer.spent is None:
            continue
        spent = answer.spent
        row = {
            "finish_s": answer.after_s,
            "download_s": spent.download_s,
            "work_s": answer.work_s,
            "upload_s": answer.upload_s,
            "judging_s": spent.judging_s,
            "loading_s": spent.load_s,
        }
        for name, value in row.items():
            columns[name][index] = np.nan if value is None else value
    return MeasuredRound(**columns)


def as_done(plan: RoundPlan, done: Mapping[int, Trained]) -> RoundPlan:
    """Return a plan with what devices say they did, where it left them something to settle or ran out."""
    assignments = plan.assignments
    rows = [done[row.device].row or row if row.device in done else row for row in assignments]
    if plan.pace is None and all(one == row for one, row in zip(rows, assignments, strict=True)):
        return plan
    reasons = [
        reason
        if plan.pace is None and row == was
        else f"{reason}; did {row.local_steps} steps at rank {row.rank}"
        for reason, row, was in zip(plan.reasons, rows, assignments, strict=True)
    ]
    did = replace(
        assignments,
        prune_heads=np.array([row.prune_heads for row in rows]),
        prune_ffn=np.array([row.prune_ffn for row in rows]),
        rank=np.array([row.rank for row in rows]),
        local_steps=np.array([row.local_steps for row in rows]),
    )
    return replace(plan, assignments=did, reasons=tuple(reasons))


def results_of(
    problem: Problem,
    plan: RoundPlan,
    trained: Sequence[Trained | None],
    status: NDArray[np.str_],
    *,
    took_s: float,
    predicted_s: Floats | None = None,
) -> Results:
    """Return the columns of a round.

    Args:
        problem: of the run.
        plan: n devices.
        trained: what came of each, (n,); None = it was not asked.
        status: of each, (n,).
        took_s: seconds of the round, for the energy of waiting.
        predicted_s: when each was predicted to finish, (n,).
    """
    assignments = plan.assignments
    rows = [_row(item, rank) for item, rank in zip(trained, assignments.rank.tolist(), strict=True)]
    column = {name: np.array([row[name] for row in rows], np.float64) for name in _row(None, 0)}
    has_worked = np.isfinite(column["compute_s"])
    return Results(
        device=assignments.device,
        status=status,
        download_s=column["download_s"],
        compute_s=column["compute_s"],
        judging_s=column["judging_s"],
        upload_s=column["upload_s"],
        finish_s=np.where(status == "ok", column["finish_s"], np.nan),
        download_bytes=column["download_bytes"],
        upload_bytes=column["upload_bytes"],
        flops=np.where(has_worked, train_flops(problem.shape, problem.workload, assignments), 0.0),
        loss_first=column["loss_first"],
        loss_last=column["loss_last"],
        samples=column["samples"].astype(np.int64),
        peak_bytes=column["peak_bytes"],
        energy_j=energy_j(
            problem,
            assignments.device,
            compute_s=np.nan_to_num(column["compute_s"]),
            upload_s=np.nan_to_num(column["upload_s"]),
            round_s=took_s,
        ),
        importance=column["importance"],
        rank_left=column["rank_left"].astype(np.int64),
        done=assignments,
        server_s=column["server_s"],
        step_up_bytes=column["step_up_bytes"],
        step_down_bytes=column["step_down_bytes"],
        predicted_s=predicted_s,
    )


def _row(item: Trained | None, rank: int) -> dict[str, float]:
    """Return a device's part of a round's columns; NaN or 0 where nothing came.

    Args:
        item: what came of it; None = it was not asked.
        rank: that it was told, which is left where it says no other.
    """
    seconds = dict.fromkeys(
        ("finish_s", "download_s", "compute_s", "judging_s", "upload_s"), np.nan
    )
    losses = dict.fromkeys(("loss_first", "loss_last", "importance"), np.nan)
    sizes = ("download_bytes", "upload_bytes", "step_up_bytes", "step_down_bytes", "peak_bytes")
    row = (
        seconds | losses | dict.fromkeys((*sizes, "server_s", "samples"), 0.0) | {"rank_left": rank}
    )
    if item is None:
        return row
    answer, outcome = item.answer, item.outcome
    row |= {
        "finish_s": answer.after_s,
        "loss_first": outcome.loss_first,
        "loss_last": outcome.loss_last,
        "importance": outcome.importance,
        "download_bytes": answer.sent_bytes,
        "upload_bytes": answer.received_bytes,
        "step_up_bytes": item.step_bytes[0],
        "step_down_bytes": item.step_bytes[1],
        "server_s": item.server_s,
        "samples": outcome.samples,
        "rank_left": outcome.rank_left or rank,
    }
    if answer.reply is not None:
        row["peak_bytes"] = answer.reply.peak_bytes
    if (spent := answer.spent) is not None:
        row |= {
            "download_s": spent.download_s,
            "compute_s": spent.compute_s,
            "judging_s": spent.judging_s or 0.0,
            "upload_s": answer.upload_s,
        }
    return row
