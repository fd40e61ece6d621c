"""JCPBA: joint client-specific pruning and bandwidth allocation.

Each round the kept fractions and shares of the available devices are chosen together so that the
slowest finishes soonest within a budget on the weighted mean pruning rate. `exact` solves that to
its global optimum with a certificate; `bcd` is the published block coordinate descent. Either
answer is rounded to whole groups and channels; the gap is quoted before and after.

Source: "Low-latency Federated LLM Fine-tuning Over Wireless Networks", arXiv 2602.01024; the
equations are reconstructed. Choosing the budget from a calibration is this project's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from airtune.errors import RecipeError
from airtune.methods.assemble import level_plan, spread
from airtune.methods.budget import choose_budget
from airtune.methods.levels import (
    allowed_levels,
    divide_for,
    exact_problem,
    lightest,
    smooth_problem,
)
from airtune.methods.memoryless import Pruner
from airtune.methods.seen import Seen, see
from airtune.plan import Bools, Floats, Ints, Observation, Problem, RoundPlan, Solution, State
from airtune.solve import (
    BcdStart,
    JointSolution,
    LadderProblem,
    Rounded,
    best_joint_budget,
    round_to_ladder,
    rounds_ratio,
    solve_bcd,
    solve_joint,
)


@dataclass(frozen=True, slots=True)
class Jcpba(Pruner):
    """The decider of JCPBA; its fields are the method's settings."""

    solver: Literal["exact", "bcd"] = "exact"
    """exact: global optimum with a certificate; bcd: block coordinate descent, as published."""
    bcd_start: BcdStart = "pruning-first"
    """Where the descent starts; it ends elsewhere from elsewhere."""

    def __post_init__(self) -> None:
        if self.solver not in ("exact", "bcd"):
            raise RecipeError(f"solver must be exact or bcd, got {self.solver!r}")
        if self.bcd_start not in ("bandwidth-first", "pruning-first"):
            raise RecipeError(
                f"bcd_start must be bandwidth-first or pruning-first, got {self.bcd_start!r}"
            )
        Pruner.__post_init__(self)  # super() does not know a class with slots

    def plan(
        self, problem: Problem, state: State, observation: Observation
    ) -> tuple[RoundPlan, State]:
        """Solve the round's problem and round it to the model.

        Raises:
            InfeasibleError: if a device's memory fits no level, or the budget is below what memory
                forces; the message names the device.
        """
        seen = see(problem, observation)
        allowed = allowed_levels(problem, seen, self.max_prune)
        if not seen.able.size:
            return level_plan(
                problem, observation, seen, lightest(allowed), seen.shares(), why="waits"
            ), state
        budget, why = self._budget(problem, seen, allowed)
        relaxed, rounded = self._solve(problem, seen, allowed, budget)
        if self.budget == "auto" and self.quality_budget == 0.0 and problem.pruning:
            dense = _least_pruned(problem, seen, allowed)
            if (
                _rounds(problem, dense) * dense.round_s
                <= _rounds(problem, rounded) * rounded.round_s
            ):
                rounded, why = dense, "calibrated: pruning does not pay this round"
        level, share = spread(seen, rounded.level, rounded.share, lightest(allowed))
        return level_plan(
            problem,
            observation,
            seen,
            level,
            share,
            why=f"budget {budget:.1%}, {why}",
            solution=_solution(relaxed, rounded),
            notes={"budget": budget, "price": float(np.max(relaxed.price, initial=0.0))},
        ), state

    def _budget(self, problem: Problem, seen: Seen, allowed: Bools) -> tuple[float, str]:
        smooth = smooth_problem(problem, seen, allowed, 1.0)
        return choose_budget(
            self.budget,
            self.quality_budget,
            problem.pruning,
            least=float(np.sum(smooth.weight * (1.0 - smooth.most_kept))),
            search=lambda rows: best_joint_budget(rows, smooth),
        )

    def _solve(
        self, problem: Problem, seen: Seen, allowed: Bools, budget: float
    ) -> tuple[JointSolution, Rounded]:
        """Return the continuous and the rounded answer, both with bounds that are proved."""
        smooth = smooth_problem(problem, seen, allowed, budget)
        ladder_problem = exact_problem(problem, seen, allowed, budget)
        best = solve_joint(smooth)
        rounded = round_to_ladder(ladder_problem, best.round_s, best.kept)
        if self.solver == "exact":
            return best, rounded
        found = solve_bcd(smooth, self.bcd_start)
        level = _round_down(ladder_problem, found.kept)
        return replace(found, bound_s=best.bound_s), _divided(
            ladder_problem, level, rounded.bound_s, found.iterations
        )


def _round_down(problem: LadderProblem, kept: Floats) -> Ints:
    """Return the levels at or below the pruning rates asked for, then spend what is left.

    Devices that lost most by rounding go up one level while the budget allows.
    """
    asked = 1.0 - kept
    allowed_first = np.argmax(problem.allowed, axis=1)
    level = np.maximum(
        np.searchsorted(problem.pruned, asked + 1e-12, side="right") - 1, allowed_first
    )
    top = problem.pruned.shape[0] - 1
    above = np.minimum(level + 1, top)
    price = problem.weight * (problem.pruned[above] - problem.pruned[level])
    left = problem.prune_budget - float(np.sum(problem.weight * problem.pruned[level]))
    usable = problem.allowed[np.arange(level.shape[0]), above] & (asked > problem.pruned[level])
    for row in np.argsort(problem.pruned[level] - asked):
        if usable[row] and 0.0 < price[row] <= left:
            left -= price[row]
            level[row] = above[row]
    return np.asarray(level, np.int64)


def _divided(problem: LadderProblem, level: Ints, bound_s: float, iterations: int) -> Rounded:
    """Return the best shares for levels already chosen."""
    division = divide_for(problem, level)
    return Rounded(
        level=level,
        share=division.share,
        finish_s=division.finish_s,
        round_s=division.round_s,
        bound_s=min(bound_s, division.round_s),
        mean_pruned=float(np.sum(problem.weight * problem.pruned[level])),
        iterations=iterations,
    )


def _least_pruned(problem: Problem, seen: Seen, allowed: Bools) -> Rounded:
    """Return the answer that prunes only what memory forces."""
    exact = exact_problem(problem, seen, allowed, 1.0)
    return _divided(exact, lightest(exact.allowed), 0.0, 0)


def _rounds(problem: Problem, answer: Rounded) -> float:
    return rounds_ratio(problem.pruning, answer.mean_pruned) if problem.pruning else 1.0


def _solution(relaxed: JointSolution, rounded: Rounded) -> Solution:
    """Return how it ended; a division for given levels has no bound of its own."""
    proved = rounded.bound_s > 0.0
    return Solution(
        status=relaxed.status,
        objective=rounded.round_s,
        iterations=relaxed.iterations,
        residual=relaxed.residual,
        gap=relaxed.gap,
        gap_rounded=rounded.gap if proved else float("nan"),
        method=relaxed.method,
    )
