"""Steps, rank and width that devices choose: simulated by their clocks, or as real devices report them.

A device knows how fast it computes now, what the broadcast takes it, and which rate its link has as
the round begins. Fading within the round is not foreseen, by a real device either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from airtune.cost import broadcast_bytes, peak_memory, train_flops, transfer_s, upload_bytes
from airtune.errors import CodecError
from airtune.fleet.rates import downlink_bps, uplink_bps
from airtune.plan import Assignment, Assignments, Floats, LinkState, Problem, RoundPlan
from airtune.plan.pace import Pace, Settled, settle
from airtune.units import format_seconds


def with_arm(assignments: Assignments, pace: Pace, arm: int) -> Assignments:
    """Return assignments with one arm of a pace for all, and one local step."""
    count = len(assignments)
    told = replace(assignments, local_steps=np.ones(count, np.int64))
    if not pace.arms:
        return told
    heads, ffn, rank = pace.arms[arm]
    return replace(
        told,
        prune_heads=np.full(count, heads),
        prune_ffn=np.full(count, ffn),
        rank=np.full(count, rank, np.int64),
    )


def let_settle(
    problem: Problem,
    plan: RoundPlan,
    *,
    links: LinkState,
    flops_per_s: Floats,
    memory_bytes: Floats,
    download_bytes: float | None = None,
) -> RoundPlan:
    """Return a plan with what its devices settle on; itself where nothing is left to them.

    Args:
        problem: unmasked.
        plan: what they are told.
        links: of the fleet, as the round begins.
        flops_per_s: of all devices, shape (devices,).
        memory_bytes: of all devices, shape (devices,).
        download_bytes: what each receives first; None = the broadcast as it is.
    """
    pace, assignments = plan.pace, plan.assignments
    if pace is None or not len(assignments):
        return plan
    device = assignments.device
    if download_bytes is None:
        download_bytes = broadcast_bytes(problem.shape, problem.workload, assignments)
    up_bps = uplink_bps(links, assignments.share, device)
    speed = flops_per_s[device]
    step_s, send_s, allowed = [], [], []
    for arm in range(max(len(pace.arms), 1)):
        row = with_arm(assignments, pace, arm)
        step_s.append(train_flops(problem.shape, problem.workload, row) / speed)
        send_s.append(transfer_s(upload_bytes(problem.shape, problem.workload, row), up_bps))
        peak_bytes = peak_memory(problem.shape, problem.workload, row).total
        allowed.append(peak_bytes <= memory_bytes[device])
    found = settle(
        pace,
        start_s=transfer_s(np.full(len(assignments), download_bytes), downlink_bps(links, device)),
        step_s=np.stack(step_s, 1),
        send_s=np.stack(send_s, 1),
        allowed=np.stack(allowed, 1),
    )
    return settled_plan(plan, pace, found)


def settled_plan(plan: RoundPlan, pace: Pace, found: Settled) -> RoundPlan:
    """Return a plan with what its devices settled on, and why."""
    assignments = replace(plan.assignments, local_steps=found.steps)
    if pace.arms:
        arms = np.array(pace.arms)[found.arm]
        assignments = replace(
            assignments,
            prune_heads=arms[:, 0],
            prune_ffn=arms[:, 1],
            rank=arms[:, 2].astype(np.int64),
        )
    reasons = [
        f"{reason}; {said(int(steps), int(rank), float(done_s), pace.finish_s, bool(fits))}"
        for reason, steps, rank, done_s, fits in zip(
            plan.reasons,
            assignments.local_steps,
            assignments.rank,
            found.finish_s,
            found.fits,
            strict=True,
        )
    ]
    return replace(plan, assignments=assignments, reasons=tuple(reasons))


def of_arm(row: Assignment, pace: Pace, arm: int, steps: int) -> Assignment:
    """Return a device's row with an arm and a number of steps of a pace."""
    if pace.arms:
        heads, ffn, rank = pace.arms[arm]
        row = replace(row, prune_heads=heads, prune_ffn=ffn, rank=rank)
    return replace(row, local_steps=steps)


def claimed(
    row: Assignment,
    pace: Pace | None,
    figures: Mapping[str, float | None],
    *,
    computed_s: float,
    after_s: float,
) -> Assignment:
    """Return what a real device says that it did, checked.

    Args:
        row: what it was told.
        pace: what it was left to settle; None = nothing.
        figures: `arm` and `steps` as reported.
        computed_s: seconds that it says it computed.
        after_s: seconds that have passed by the server's clock.

    Raises:
        CodecError: if it names an arm or steps that there are not, or more seconds than passed.
    """
    if pace is None:
        return row
    arm, steps = figures.get("arm"), figures.get("steps")
    arms = max(len(pace.arms), 1)
    if arm is None or not (0 <= arm < arms and arm == int(arm)):
        raise CodecError(f"it says that it played arm {arm} of {arms}; it is refused")
    if steps is None or not (1 <= steps <= pace.most_steps and steps == int(steps)):
        raise CodecError(
            f"it says that it took {steps} steps, between 1 and {pace.most_steps} were allowed; "
            "it is refused"
        )
    if not 0.0 < computed_s <= after_s:
        raise CodecError(
            f"it says that it took {steps:g} steps in {computed_s:.3g} s, and {after_s:.3g} s have "
            "passed since it was asked; it is refused"
        )
    return of_arm(row, pace, int(arm), int(steps))


def said(steps: int, rank: int, done_s: float, finish_s: float, fits: bool) -> str:
    """Return a device's choice in words.

    >>> said(7, 16, 8.0, 8.2, True)
    'fits 7 steps at rank 16 by 8.2 s'
    """
    by = format_seconds(finish_s)
    if fits:
        return f"fits {steps} step{'s' if steps > 1 else ''} at rank {rank} by {by}"
    if not np.isfinite(done_s):
        return f"cannot finish a step by {by}: no setting fits its memory or link"
    return f"one step at rank {rank} takes {format_seconds(done_s)}, longer than {by}"
