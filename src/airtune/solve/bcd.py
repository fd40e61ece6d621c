"""Joint pruning and bandwidth by block coordinate descent, as published, from two named starts.

Each sweep solves one block exactly with the other held: the shares for given kept fractions
(`divide_min_max`), the kept fractions for given shares (`prune_min_max`). No sweep raises the
finish time, but on this min-max problem the descent stalls after about two sweeps, and where it
stalls depends on the start: after the bandwidth block all devices finish together, and then no
pruning block can prune anyone less without pruning another more.

    bandwidth-first   from uniform pruning at the budget; never improves on uniform pruning
    pruning-first     from equal shares; ends within a few percent of the optimum

Source: arXiv 2602.01024 (block coordinate descent is the paper's; the blocks are reconstructed).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from airtune.plan import Floats
from airtune.solve.bandwidth import divide_min_max
from airtune.solve.problem import JointProblem, JointSolution
from airtune.solve.pruning import prune_min_max

BcdStart = Literal["bandwidth-first", "pruning-first"]

_STALLED = 1e-9


def solve_bcd(
    problem: JointProblem, start: BcdStart = "pruning-first", *, most_sweeps: int = 50
) -> JointSolution:
    """Descend block by block until a sweep gains less than 1e-9 of the finish time.

    Args:
        problem: the joint problem.
        start: which block comes first, and so from where.
        most_sweeps: sweeps after which to stop anyway.

    Returns:
        The solution, `status` "stalled" and `bound_s` NaN: the descent certifies nothing. Its gap
        is found by comparing with `solve_joint`.

    Raises:
        InfeasibleError: if the problem is out of range; see `JointProblem`.
    """
    if start == "bandwidth-first":
        kept = uniform_kept(problem)
        share, best_s = _bandwidth_block(problem, kept)
    else:
        share = problem.curves.equal_shares()
        kept, best_s = prune_min_max(problem, share)
        share, best_s = _better(problem, kept, share)
    sweeps = 1
    while sweeps < most_sweeps:
        sweeps += 1
        kept, _ = prune_min_max(problem, share)
        share, finish_s = _better(problem, kept, share)
        gained = best_s - finish_s
        best_s = min(best_s, finish_s)
        if gained <= _STALLED * best_s:
            break
    return JointSolution(
        kept=kept,
        share=share,
        round_s=float(np.max(problem.finish_s(kept, share))),
        bound_s=float("nan"),
        price=np.zeros(problem.curves.budget.shape[0]),
        status="stalled",
        iterations=sweeps,
        residual=problem.violation(kept, share),
        method=f"bcd, {start}",
    )


def uniform_kept(problem: JointProblem) -> Floats:
    """Return one kept fraction for all that spends the whole pruning budget, shape (n,).

    Devices whose memory forces more keep less, and the others share what is left of the budget.
    """
    weight, most = problem.weight, problem.most_kept
    low, high = 0.0, 1.0
    for _ in range(60):
        level = 0.5 * (low + high)
        value = float(np.sum(weight * np.clip(level, problem.least_kept, most)))
        low, high = (level, high) if value < problem.least_value else (low, level)
    return np.asarray(np.clip(high, problem.least_kept, most), np.float64)


def _bandwidth_block(problem: JointProblem, kept: Floats) -> tuple[Floats, float]:
    division = divide_min_max(
        problem.curves,
        problem.fixed_s + kept * problem.compute_s,
        problem.fixed_bits + kept * problem.bits,
    )
    return division.share, division.round_s


def _better(problem: JointProblem, kept: Floats, share: Floats) -> tuple[Floats, float]:
    """Return the bandwidth block's answer, or the shares held where rounding made it no better."""
    held_s = float(np.max(problem.finish_s(kept, share)))
    fresh, fresh_s = _bandwidth_block(problem, kept)
    return (fresh, fresh_s) if fresh_s < held_s else (share, held_s)
