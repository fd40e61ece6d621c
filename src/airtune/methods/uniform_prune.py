"""Controls with one pruning rate for all, on equal shares or on the best division of the links."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from airtune.errors import RecipeError
from airtune.methods.assemble import level_plan, spread
from airtune.methods.budget import choose_budget, least_budget, most_of
from airtune.methods.levels import allowed_levels, divide_for, exact_problem, finish_table, lightest
from airtune.methods.memoryless import Pruner
from airtune.methods.seen import Seen, see
from airtune.plan import Bools, Floats, Ints, Observation, Problem, RoundPlan, State
from airtune.solve import LadderProblem, best_budget


@dataclass(frozen=True, slots=True)
class UniformPrune(Pruner):
    """Everybody prunes alike, as far as the budget goes; memory may force more on some."""

    division: Literal["equal", "best"] = "equal"
    """How links are divided: equally, or so that the slowest finishes soonest."""

    def __post_init__(self) -> None:
        if self.division not in ("equal", "best"):
            raise RecipeError(f"division must be equal or best, got {self.division!r}")
        Pruner.__post_init__(self)  # super() does not know a class with slots

    def plan(
        self, problem: Problem, state: State, observation: Observation
    ) -> tuple[RoundPlan, State]:
        """Put everybody on the heaviest common level within the budget."""
        seen = see(problem, observation)
        allowed = allowed_levels(problem, seen, self.max_prune)
        if not seen.able.size:
            return level_plan(
                problem, observation, seen, lightest(allowed), seen.shares(), why="waits"
            ), state
        exact = exact_problem(problem, seen, allowed, 1.0)
        least = least_budget(exact.weight, exact.pruned, exact.allowed)
        budget, why = choose_budget(
            self.budget,
            self.quality_budget,
            problem.pruning,
            least=least,
            search=lambda measured: best_budget(
                measured,
                lambda rate: self._divide(problem, seen, exact, rate)[2],
                least=least,
                most=most_of(problem, self.max_prune),
            ),
        )
        level, share, _ = self._divide(problem, seen, exact, budget)
        level, share = spread(seen, level, share, lightest(allowed))
        return level_plan(
            problem,
            observation,
            seen,
            level,
            share,
            why=f"the same for all, budget {budget:.1%}, {why}",
            notes={"budget": budget},
        ), state

    def _divide(
        self, problem: Problem, seen: Seen, exact: LadderProblem, budget: float
    ) -> tuple[Ints, Floats, float]:
        """Return levels, shares and the round time at a budget."""
        level = common_level(exact.pruned, exact.allowed, exact.weight, budget)
        if self.division == "best":
            found = divide_for(exact, level)
            return level, found.share, found.round_s
        share = exact.curves.equal_shares()
        finish = finish_table(problem, seen, share)[np.arange(level.shape[0]), level]
        return level, share, float(np.max(finish))


def common_level(pruned: Floats, allowed: Bools, weight: Floats, budget: float) -> Ints:
    """Return the heaviest level that all can share within a budget, shape (n,).

    Devices whose memory forces more prune more, at the expense of the others' rate.

    >>> levels = np.array([0.0, 0.2, 0.4])
    >>> common_level(levels, np.ones((2, 3), bool), np.array([0.5, 0.5]), 0.3).tolist()
    [1, 1]
    """
    floor = np.argmax(allowed, axis=1)
    top = allowed.shape[1] - 1 - np.argmax(allowed[:, ::-1], axis=1)
    best = floor
    for step in range(pruned.shape[0]):
        level = np.clip(step, floor, top)
        if float(np.sum(weight * pruned[level])) > budget + 1e-12:
            break
        best = level
    return np.asarray(best, np.int64)
