"""What deciders without memory share: each round is independent."""

from __future__ import annotations

from dataclasses import dataclass

from airtune.methods.budget import Budget, check_budget
from airtune.methods.slot import keep_or_divide
from airtune.plan import Floats, LinkState, Need, Problem, Results, RoundPlan, State, Want


class Memoryless:
    """Three of a decider's four functions, for one that allocates once a round and learns nothing."""

    __slots__ = ()

    def init(self, problem: Problem) -> State:
        """Return no state."""
        return {}

    def divide(
        self,
        problem: Problem,
        state: State,
        plan: RoundPlan,
        links: LinkState,
        remaining_bytes: Floats,
    ) -> Floats:
        """Keep the shares of the plan until a device that got none can send."""
        return keep_or_divide(plan, links, remaining_bytes)

    def learn(self, problem: Problem, state: State, results: Results) -> State:
        """Learn nothing: what matters is known, or never asked for."""
        return state


@dataclass(frozen=True, slots=True)
class Pruner(Memoryless):
    """The settings of every method that spends a budget on pruning."""

    budget: Budget = "auto"
    """Weighted mean pruning rate that may be spent; auto = what reaches the target soonest by the
    calibration, which may be none."""
    quality_budget: float = 0.0
    """Instead: the relative loss increase allowed, 0.02 for 2 %, turned into a rate by the
    calibration; 0 = off."""
    max_prune: Budget = "auto"
    """Largest pruning rate of a device; auto = as far as was measured that the model bears it, .7 where
    nothing was; memory may force more."""
    needs: frozenset[Need] = frozenset({"capability", "channel"})

    @property
    def wants(self) -> frozenset[Want]:
        """What heads and channels cost; what pruning costs, where the budget follows from it."""
        is_open = self.budget == "auto" or self.quality_budget > 0.0
        return frozenset({"sensitivity", "pruning"} if is_open else {"sensitivity"})

    def __post_init__(self) -> None:
        check_budget(self.budget, self.quality_budget, self.max_prune)
