"""Prune-and-tune by a fixed schedule, the same for every device: the controls of FedSpine.

What differs between LoRAPrune, APT, LLM-Pruner, magnitude and random pruning is the importance,
which is a switch of the local work, and whether pruning comes at once or little by little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from airtune.cost import Order
from airtune.methods.blind import equal_links
from airtune.methods.seen import available
from airtune.methods.sparsity import (
    LEVELS,
    PruningTarget,
    Structures,
    check_min_rank,
    check_order,
    check_sparsity,
    levels_of,
    ranks_between,
    schedule_of,
    schedule_round,
)
from airtune.plan import Floats, LinkState, Need, Observation, Problem, Results, RoundPlan, State


@dataclass(frozen=True, slots=True)
class PruneAndTune:
    """Everybody prunes alike, at once or on the cubic schedule, and knows nothing of devices."""

    sparsity: float = 0.5
    """Fraction of the blocks' weights that is gone at the end."""
    structures: Structures = "auto"
    """What is removed; auto = heads too where the family's plain config can say so."""
    order: Order = "measured"
    """What goes first: whichever of heads and channels was measured to cost least, or both in
    proportion, as the papers prune."""
    pace: Literal["cubic", "once"] = "cubic"
    """Little by little, or all before the first round."""
    warmup: float = 0.0
    """Part of the rounds before the first pruning."""
    cooldown: float = 0.5
    """Part of the rounds that only tune at the end."""
    prune_every: int = 20
    """Local iterations between prunings."""
    min_rank: int = 0
    """Rank to start from, growing to lora.r as pruning goes on (APT); 0 = lora.r throughout."""
    needs: frozenset[Need] = frozenset()

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity, self.warmup, self.cooldown, self.prune_every)
        check_order(self.order)
        if self.min_rank:
            check_min_rank(self.min_rank)

    @property
    def target(self) -> PruningTarget:
        """Where pruning ends."""
        return PruningTarget(self.sparsity, self.structures, self.order)

    def init(self, problem: Problem) -> State:
        """Return no state: the schedule says it all."""
        levels_of(problem, self.target)
        return {}

    def plan(
        self, problem: Problem, state: State, observation: Observation
    ) -> tuple[RoundPlan, State]:
        """Put every device on the level of the schedule."""
        schedule = schedule_of(
            problem, warmup=self.warmup, cooldown=self.cooldown, prune_every=self.prune_every
        )
        now = schedule_round(problem, observation)
        progress = schedule.progress(now)
        level = LEVELS if self.pace == "once" else schedule.floor(now)
        most = problem.workload.rank
        rank = int(ranks_between(self.min_rank or most, most, np.array([progress]))[0])
        return level_round(problem, observation, self, level=level, rank=rank), state

    def divide(
        self,
        problem: Problem,
        state: State,
        plan: RoundPlan,
        links: LinkState,
        remaining_bytes: Floats,
    ) -> Floats:
        """Keep the equal shares."""
        return plan.assignments.share

    def learn(self, problem: Problem, state: State, results: Results) -> State:
        """Learn nothing."""
        return state


def level_round(
    problem: Problem, observation: Observation, how: PruneAndTune, *, level: int, rank: int
) -> RoundPlan:
    """Return the plan with every device on one level and rank, links divided equally."""
    levels = levels_of(problem, how.target)
    device = available(observation)
    count = device.shape[0]
    assignments = equal_links(
        problem,
        device,
        prune_heads=np.full(count, levels.prune_heads[level]),
        prune_ffn=np.full(count, levels.prune_ffn[level]),
        rank=np.full(count, rank, np.int64),
    )
    pruned = float(levels.pruned[level])
    line = f"prunes {pruned:.1%} of {levels.pruned[-1]:.1%}, as the schedule says; rank {rank}"
    return RoundPlan(
        observation.round,
        assignments,
        tuple(f"{problem.devices.names[index]}: {line}" for index in device),
        deadline_s=problem.deadline_s,
        notes={"mean_pruned": pruned},
    )
