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
    assignments, count = plan.assignments, len(plan.assignments)
    columns = {
        name: np.full(count, np.nan)
        for name in (
            "finish",
            "download",
            "judging",
            "compute",
            "upload",
            "first",
            "last",
            "importance",
        )
    }
    sent, received, peak, step_up, step_down, server_s = np.zeros((6, count))
    samples, rank_left = np.zeros(count, np.int64), assignments.rank.copy()
    for index, item in enumerate(trained):
        if item is None:
            continue
        answer, outcome = item.answer, item.outcome
        sent[index], received[index] = answer.sent_bytes, answer.received_bytes
        step_up[index], step_down[index] = item.step_bytes
        server_s[index] = item.server_s
        columns["finish"][index] = answer.after_s
        if (spent := answer.spent) is not None:
            columns["download"][index], columns["compute"][index] = (
                spent.download_s,
                spent.compute_s,
            )
            columns["judging"][index] = spent.judging_s or 0.0
            columns["upload"][index] = answer.upload_s
        columns["first"][index], columns["last"][index] = outcome.loss_first, outcome.loss_last
        columns["importance"][index] = outcome.importance
        samples[index] = outcome.samples
        rank_left[index] = outcome.rank_left or rank_left[index]
        peak[index] = 0.0 if answer.reply is None else answer.reply.peak_bytes
    compute_s, upload_s = columns["compute"], columns["upload"]
    return Results(
        device=assignments.device,
        status=status,
        download_s=columns["download"],
        compute_s=compute_s,
        judging_s=columns["judging"],
        upload_s=upload_s,
        finish_s=np.where(status == "ok", columns["finish"], np.nan),
        download_bytes=sent,
        upload_bytes=received,
        flops=np.where(
            np.isnan(compute_s), 0.0, train_flops(problem.shape, problem.workload, assignments)
        ),
        loss_first=columns["first"],
        loss_last=columns["last"],
        samples=samples,
        peak_bytes=peak,
        energy_j=energy_j(
            problem,
            assignments.device,
            compute_s=np.nan_to_num(compute_s),
            upload_s=np.nan_to_num(upload_s),
            round_s=took_s,
        ),
        importance=columns["importance"],
        rank_left=rank_left,
        done=assignments,
        server_s=server_s,
        step_up_bytes=step_up,
        step_down_bytes=step_down,
        predicted_s=predicted_s,
    )
