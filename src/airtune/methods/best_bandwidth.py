"""The control without pruning: the whole model for everybody, links divided as well as can be."""

from __future__ import annotations

from dataclasses import dataclass

from airtune.methods.assemble import level_plan, spread
from airtune.methods.levels import allowed_levels, divide_for, exact_problem, lightest
from airtune.methods.memoryless import Memoryless
from airtune.methods.seen import see
from airtune.plan import Need, Observation, Problem, RoundPlan, Solution, State


@dataclass(frozen=True, slots=True)
class BestBandwidth(Memoryless):
    """Min-max division of the links; pruning only where memory forces it."""

    max_prune: float = 0.7
    """Largest pruning rate that memory may force on a device."""
    needs: frozenset[Need] = frozenset({"capability", "channel"})

    def plan(
        self, problem: Problem, state: State, observation: Observation
    ) -> tuple[RoundPlan, State]:
        """Divide the links for the lightest level that each device can hold."""
        seen = see(problem, observation)
        allowed = allowed_levels(problem, seen, self.max_prune)
        level, share, solution = lightest(allowed), seen.shares(), None
        if seen.able.size:
            exact = exact_problem(problem, seen, allowed, 1.0)
            chosen = level[seen.able]
            found = divide_for(exact, chosen)
            level, share = spread(seen, chosen, found.share, level)
            solution = Solution(
                found.status,
                found.round_s,
                found.iterations,
                found.residual,
                found.gap,
                method="min-max division",
            )
        return level_plan(
            problem,
            observation,
            seen,
            level,
            share,
            why="best division of the link",
            solution=solution,
        ), state
