"""The pruning levels that each device may use, and what they cost it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from airtune.cost import Ladder, ladder
from airtune.errors import InfeasibleError
from airtune.methods.budget import UNMEASURED_MOST, Budget, most_of
from airtune.methods.seen import Seen
from airtune.plan import Bools, Floats, Ints, ModelShape, Problem, Sensitivity, Workload
from airtune.solve import Division, JointProblem, LadderProblem, divide_min_max
from airtune.units import BITS_PER_BYTE, format_bytes

_SLACK = 1e-9


@lru_cache(maxsize=16)
def _ladder(shape: ModelShape, workload: Workload, sensitivity: Sensitivity | None) -> Ladder:
    return ladder(shape, workload, sensitivity)


def ladder_of(problem: Problem) -> Ladder:
    """Return the model's ladder; the same shape, workload and sensitivity are priced once."""
    return _ladder(problem.shape, problem.workload, problem.sensitivity)


def allowed_levels(problem: Problem, seen: Seen, max_prune: Budget) -> Bools:
    """Return which levels fit a device's memory and the method's limit, shape (n, levels).

    Where the limit is what was measured to be sound, a device whose memory forces more gets its
    lightest level beyond it.

    Raises:
        InfeasibleError: if a device cannot hold even the heaviest level; the message names it.
    """
    steps = ladder_of(problem)
    limit = most_of(problem, max_prune)
    allowed = fitting_levels(steps, seen.memory_bytes, limit, forced=max_prune == "auto")
    none = np.asarray(~allowed.any(axis=1), np.bool_)
    if none.any():
        limit = max(limit, UNMEASURED_MOST) if max_prune == "auto" else limit
        row, others = seen.short_of_memory(none)
        reach = np.flatnonzero(steps.pruned <= limit + _SLACK)
        least = float(steps.peak_bytes[reach[-1]])
        raise InfeasibleError(
            f"device {seen.names[row]} has {format_bytes(seen.memory_bytes[row])} of memory, but "
            f"training needs {format_bytes(least)} even with {steps.pruned[reach[-1]]:.0%} pruned "
            f"(max_prune {limit:g}){others}; shorten the sequences, lower the batch, turn on gradient "
            "checkpointing or leave the device out"
        )
    return allowed


def fitting_levels(steps: Ladder, memory_bytes: Floats, limit: float, *, forced: bool) -> Bools:
    """Return which levels fit each memory and a limit, shape (n, levels).

    Args:
        steps: the ladder.
        memory_bytes: shape (n,).
        limit: largest pruning rate.
        forced: a device whose memory holds no level within the limit gets its lightest beyond it.
    """
    fits = steps.peak_bytes <= memory_bytes[:, None]
    allowed = fits & (steps.pruned <= limit + _SLACK)
    if forced:
        none = np.asarray(~allowed.any(axis=1))
        beyond = fits & (steps.pruned <= max(limit, UNMEASURED_MOST) + _SLACK) & none[:, None]
        allowed |= beyond & (np.cumsum(beyond, axis=1) == 1)
    return np.asarray(allowed, np.bool_)


def lightest(allowed: Bools) -> Ints:
    """Return the lightest pruning level that each device may use, shape (n,)."""
    return np.asarray(np.argmax(allowed, axis=1), np.int64)


def finish_table(problem: Problem, seen: Seen, share: Floats) -> Floats:
    """Return when each able device would finish at each level at given shares, shape (n, levels)."""
    steps = ladder_of(problem)
    upload_s = steps.upload_bytes * BITS_PER_BYTE / seen.curves.rate(share)[:, None]
    return seen.of(seen.download_s)[:, None] + _compute_s(steps, seen) + upload_s


def exact_problem(problem: Problem, seen: Seen, allowed: Bools, budget: float) -> LadderProblem:
    """Return the joint problem of the able devices at the ladder's exact costs."""
    steps = ladder_of(problem)
    return LadderProblem(
        curves=seen.curves,
        fixed_s=seen.of(seen.download_s),
        compute_s=_compute_s(steps, seen),
        bits=steps.upload_bytes * BITS_PER_BYTE,
        pruned=steps.pruned,
        allowed=allowed[seen.able],
        weight=_able_weight(seen),
        prune_budget=budget,
        names=seen.able_names,
    )


def divide_for(exact: LadderProblem, level: Ints) -> Division:
    """Return the best division of the links for levels already chosen, shape (n,)."""
    rows = np.arange(level.shape[0])
    return divide_min_max(
        exact.curves, exact.fixed_s + exact.compute_s[rows, level], exact.bits[level]
    )


def smooth_problem(problem: Problem, seen: Seen, allowed: Bools, budget: float) -> JointProblem:
    """Return the joint problem with costs affine in the kept fraction x.

    Bytes and FLOPs of the ladder are put on the line through its dense level and the heaviest one
    allowed; what the line leaves at x = 0 is the fixed part. Groups and channels each enter bytes
    and FLOPs linearly, so the line is off only where whole groups keep heads and channels out of
    balance. Rounding works with the exact costs again.
    """
    steps = ladder_of(problem)
    rows = allowed[seen.able]
    last = int(np.max(np.flatnonzero(rows.any(axis=0))))
    flops, flops_fixed = _line(steps.pruned, steps.flops, last)
    size, size_fixed = _line(steps.pruned, steps.upload_bytes, last)
    speed = seen.of(seen.flops_per_s)
    count = speed.shape[0]
    heaviest = steps.pruned[rows.shape[1] - 1 - np.argmax(rows[:, ::-1], axis=1)]
    return JointProblem(
        curves=seen.curves,
        fixed_s=seen.of(seen.download_s) + flops_fixed / speed,
        compute_s=flops / speed,
        fixed_bits=np.full(count, size_fixed * BITS_PER_BYTE),
        bits=np.full(count, size * BITS_PER_BYTE),
        weight=_able_weight(seen),
        least_kept=1.0 - heaviest,
        most_kept=1.0 - steps.pruned[lightest(rows)],
        prune_budget=budget,
        names=seen.able_names,
    )


def _line(pruned: Floats, cost: Floats, last: int) -> tuple[float, float]:
    """Return (slope in the kept fraction, value at nothing kept) through the first and last level."""
    if last == 0:
        return float(cost[0]), 0.0
    slope = float((cost[0] - cost[last]) / (pruned[last] - pruned[0]))
    slope = min(max(slope, 1e-9 * float(cost[0])), float(cost[0]))
    return slope, float(cost[0]) - slope


def _compute_s(steps: Ladder, seen: Seen) -> Floats:
    return np.asarray(steps.flops / seen.of(seen.flops_per_s)[:, None], np.float64)


def _able_weight(seen: Seen) -> Floats:
    weight = seen.of(seen.weight)
    total = float(np.sum(weight))
    return weight / total if total > 0.0 else np.full(weight.shape, 1.0 / max(weight.size, 1))
