"""A round of real devices in columns: what they report, and what was seen of their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from airtune.cost import energy_j, train_flops
from airtune.engine.remote.devices import Trained
from airtune.plan import Assignments, Floats, Problem, Results, RoundPlan


def status_of(item: Trained | None) -> str:
    """Return what became of a device; None = it was not asked."""
    if item is None:
        return "failed"
    return item.answer.status if item.outcome.update is None else "ok"


def working_s(told: Assignments, done: Mapping[int, Trained]) -> Floats:
    """Return what each device computed without waiting for anybody; NaN where unknown, (n,)."""
    found = np.full(len(told), np.nan)
    for place, device in enumerate(told.device.tolist()):
        reply = done[device].answer.reply if device in done else None
        if reply is not None and reply.status == "ok":
            stepping_s = reply.figures.get("stepping_s")
            found[place] = reply.spent.compute_s if stepping_s is None else stepping_s
    return found


def as_done(plan: RoundPlan, done: Mapping[int, Trained]) -> RoundPlan:
    """Return a plan with what devices say they did, where it left them something to settle."""
    if plan.pace is None:
        return plan
    told = plan.assignments
    rows = [
        done[row.device].row or row if row.device in done else row for row in told
    ]  # fmt: skip
    reasons = [
        f"{reason}; did {row.local_steps} steps at rank {row.rank}" for reason, row in
        zip(plan.reasons, rows, strict=True)
    ]  # fmt: skip
    did = replace(
        told, prune_heads=np.array([row.prune_heads for row in rows]),
        prune_ffn=np.array([row.prune_ffn for row in rows]),
        rank=np.array([row.rank for row in rows]),
        local_steps=np.array([row.local_steps for row in rows]),
    )  # fmt: skip
    return replace(plan, assignments=did, reasons=tuple(reasons))


def results_of(
    problem: Problem, plan: RoundPlan, trained: Sequence[Trained | None], status: NDArray[np.str_],
    *, took_s: float,
) -> Results:  # fmt: skip
    """Return the columns of a round.

    Args:
        problem: of the run.
        plan: n devices.
        trained: what came of each, (n,); None = it was not asked.
        status: of each, (n,).
        took_s: seconds of the round, for the energy of waiting.
    """
    told, count = plan.assignments, len(plan.assignments)
    columns = {name: np.full(count, np.nan) for name in (
        "finish", "compute", "upload", "first", "last", "importance")}  # fmt: skip
    sent, received, peak = np.zeros(count), np.zeros(count), np.zeros(count)
    samples, rank_left = np.zeros(count, np.int64), told.rank.copy()
    for place, item in enumerate(trained):
        if item is None:
            continue
        answer, outcome = item.answer, item.outcome
        sent[place], received[place] = answer.sent_bytes, answer.received_bytes
        columns["finish"][place] = answer.after_s
        if answer.reply is not None:
            columns["compute"][place] = answer.reply.spent.compute_s
            columns["upload"][place] = answer.upload_s
        columns["first"][place], columns["last"][place] = outcome.loss_first, outcome.loss_last
        columns["importance"][place] = outcome.importance
        samples[place] = outcome.samples
        rank_left[place] = outcome.rank_left or rank_left[place]
        peak[place] = 0.0 if answer.reply is None else answer.reply.peak_bytes
    compute_s, upload_s = columns["compute"], columns["upload"]
    return Results(
        device=told.device, status=status,
        download_s=columns["finish"] - compute_s - upload_s, compute_s=compute_s,
        upload_s=upload_s, finish_s=np.where(status == "ok", columns["finish"], np.nan),
        download_bytes=sent, upload_bytes=received,
        flops=np.where(np.isnan(compute_s), 0.0,
                       train_flops(problem.shape, problem.workload, told)),
        loss_first=columns["first"], loss_last=columns["last"], samples=samples,
        peak_bytes=peak,
        energy_j=energy_j(problem, told.device, compute_s=np.nan_to_num(compute_s),
                          upload_s=np.nan_to_num(upload_s), round_s=took_s),
        importance=columns["importance"], rank_left=rank_left, done=told,
    )  # fmt: skip
