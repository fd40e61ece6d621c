"""The control that prunes each device by itself but divides the links equally."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.methods.assemble import level_plan, spread
from airtune.methods.budget import choose_budget, least_budget, most_of
from airtune.methods.levels import allowed_levels, exact_problem, finish_table, lightest
from airtune.methods.memoryless import Pruner
from airtune.methods.seen import see
from airtune.plan import Floats, Ints, Observation, Problem, RoundPlan, State
from airtune.solve import LadderProblem, best_budget


@dataclass(frozen=True, slots=True)
class PruneEqualBandwidth(Pruner):
    """Client-specific pruning at equal shares: the least finish time within the budget."""

    def plan(
        self, problem: Problem, state: State, observation: Observation
    ) -> tuple[RoundPlan, State]:
        """Prune the slow devices until the budget is spent."""
        seen = see(problem, observation)
        allowed = allowed_levels(problem, seen, self.max_prune)
        if not seen.able.size:
            return level_plan(
                problem, observation, seen, lightest(allowed), seen.shares(), why="waits"
            ), state
        exact = exact_problem(problem, seen, allowed, 1.0)
        share = seen.curves.equal_shares()
        finish = np.where(exact.allowed, finish_table(problem, seen, share), np.inf)
        moments = np.unique(finish[np.isfinite(finish)])
        least = least_budget(exact.weight, exact.pruned, exact.allowed)
        budget, why = choose_budget(
            self.budget,
            self.quality_budget,
            problem.pruning,
            least=least,
            search=lambda measured: best_budget(
                measured,
                lambda rate: levels_in_time(exact, finish, moments, rate)[1],
                least=least,
                most=most_of(problem, self.max_prune),
            ),
        )
        level, _ = levels_in_time(exact, finish, moments, budget)
        level, share = spread(seen, level, share, lightest(allowed))
        return level_plan(
            problem,
            observation,
            seen,
            level,
            share,
            why=f"equal shares, budget {budget:.1%}, {why}",
            notes={"budget": budget},
        ), state


def levels_in_time(
    exact: LadderProblem, finish: Floats, moments: Floats, budget: float
) -> tuple[Ints, float]:
    """Return the lightest levels that meet the least finish time within a budget, and that time.

    Args:
        exact: the devices' costs.
        finish: when each device finishes at each level, inf where not allowed, shape (n, levels).
        moments: the finite values of `finish`, rising: the optimum is one of them.
        budget: weighted mean pruning rate.
    """
    low, high = 0, moments.shape[0] - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if _fits(exact, finish, moments[middle], budget) else (middle + 1, high)
        )
    level = np.argmax(finish <= moments[low], axis=1)
    return level.astype(np.int64), float(moments[low])


def _fits(exact: LadderProblem, finish: Floats, moment: float, budget: float) -> bool:
    in_time = finish <= moment
    if not in_time.any(axis=1).all():
        return False
    level = np.argmax(in_time, axis=1)
    return float(np.sum(exact.weight * exact.pruned[level])) <= budget + 1e-12
