"""The random control: each device a random level within the budget, and a random share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.keys import generator
from airtune.methods.assemble import level_plan, spread
from airtune.methods.budget import choose_budget, least_budget, most_of
from airtune.methods.levels import allowed_levels, divide_for, exact_problem, lightest
from airtune.methods.memoryless import Pruner
from airtune.methods.seen import see
from airtune.plan import Floats, Ints, Observation, Problem, RoundPlan, State
from airtune.solve import Curves, LadderProblem, best_budget


@dataclass(frozen=True, slots=True)
class RandomChoice(Pruner):
    """Random pruning and random shares: what deciding is worth shows against this.

    Levels are drawn evenly from those a device may use and lowered together, in random order, until
    the budget holds; shares are drawn evenly from the simplex.
    """

    def plan(
        self, problem: Problem, state: State, observation: Observation
    ) -> tuple[RoundPlan, State]:
        """Draw levels and shares."""
        seen = see(problem, observation)
        allowed = allowed_levels(problem, seen, self.max_prune)
        if not seen.able.size:
            return level_plan(
                problem, observation, seen, lightest(allowed), seen.shares(), why="waits"
            ), state
        exact = exact_problem(problem, seen, allowed, 1.0)
        draws = generator(problem.seed, "random", observation.round)
        least = least_budget(exact.weight, exact.pruned, exact.allowed)
        budget, why = choose_budget(
            self.budget,
            self.quality_budget,
            problem.pruning,
            least=least,
            search=lambda measured: best_budget(
                measured,
                lambda rate: _mean_round_s(exact, rate),
                least=least,
                most=most_of(problem, self.max_prune),
            ),
        )
        level = draw_levels(draws, exact, budget)
        share = draw_shares(draws, seen.curves)
        level, share = spread(seen, level, share, lightest(allowed))
        return level_plan(
            problem,
            observation,
            seen,
            level,
            share,
            why=f"drawn at random, budget {budget:.1%}, {why}",
            notes={"budget": budget},
        ), state


def _mean_round_s(exact: LadderProblem, budget: float) -> float:
    """Return the round time with everybody on the level nearest the budget."""
    level = np.maximum(
        np.searchsorted(exact.pruned, budget + 1e-12) - 1, np.argmax(exact.allowed, axis=1)
    )
    return divide_for(exact, level).round_s


def draw_levels(draws: np.random.Generator, exact: LadderProblem, budget: float) -> Ints:
    """Return random allowed levels whose weighted mean pruning rate is within the budget."""
    floor = np.argmax(exact.allowed, axis=1)
    count = exact.allowed.sum(axis=1)
    level = floor + np.floor(draws.random(floor.shape[0]) * count).astype(np.int64)
    order = draws.permutation(floor.shape[0])
    cost = exact.weight * exact.pruned[level]
    saved = cost - exact.weight * exact.pruned[floor]
    over = float(np.sum(cost)) - budget
    # Devices in random order fall back to their floor until the rest fits.
    fallen = np.concatenate([[0.0], np.cumsum(saved[order])[:-1]]) < over - 1e-12
    level[order[fallen]] = floor[order[fallen]]
    return np.asarray(level, np.int64)


def draw_shares(draws: np.random.Generator, curves: Curves) -> Floats:
    """Return shares drawn evenly from every shared link's simplex; 1 on dedicated links."""
    parts = draws.exponential(size=len(curves)) + 1e-9
    total = curves.load(parts)
    share = parts * (curves.budget / np.where(total > 0.0, total, 1.0))[curves.link]
    return np.where(curves.dedicated, 1.0, share)
