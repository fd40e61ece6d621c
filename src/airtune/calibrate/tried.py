"""What a short federation tries: one setting of the knobs, the same for all or dealt to devices."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from airtune.cost import Ladder, ladder
from airtune.keys import generator
from airtune.methods.memoryless import Memoryless
from airtune.plan import (
    CodecSpec,
    Floats,
    Need,
    Observation,
    Problem,
    RoundPlan,
    State,
    whole_model,
)


@dataclass(frozen=True, slots=True)
class Tried(Memoryless):
    """The decider of a short federation; as it is, it trains the whole model at full rank."""

    pruned: float = 0.0
    """Mean pruning rate; rates go from 0 to twice that and are dealt anew each round."""
    rank: int | None = None
    """Of all devices; None = the recipe's."""
    cuts: tuple[int, ...] = ()
    """Dealt to the devices in turn; none = nothing is cut."""
    codec: CodecSpec = field(default_factory=CodecSpec)
    """What crosses the cuts is coded with it."""
    upload: CodecSpec | None = None
    """How updates are coded, by whoever carries the short federation out; None = as the recipe says."""
    local_steps: int | None = None
    """Of all devices; None = the recipe's."""
    needs: frozenset[Need] = frozenset()

    @property
    def label(self) -> str:
        """What is tried, in words that differ for whatever differs.

        >>> Tried().label, Tried(cuts=(1, 3)).label, Tried(rank=4).label
        ('whole', 'cut 1 3 identity', 'rank 4')
        """
        if self.cuts:
            return f"cut {' '.join(map(str, self.cuts))} {self.codec.label}"
        if self.upload is not None:
            return f"upload {self.upload.label}"
        if self.local_steps is not None:
            return f"{self.local_steps} local steps"
        if self.rank is not None:
            return f"rank {self.rank}"
        return f"pruned {self.pruned:g}" if self.pruned else "whole"

    def plan(
        self, problem: Problem, state: State, observation: Observation
    ) -> tuple[RoundPlan, State]:
        """Tell every device what is tried."""
        everybody, workload = np.arange(len(problem.devices)), problem.workload
        plan = whole_model(
            everybody,
            rank=self.rank or workload.rank,
            local_steps=self.local_steps or workload.local_steps,
            share=np.ones(len(everybody)),
        )
        if self.pruned:
            levels = ladder(problem.shape, workload, problem.sensitivity)
            rates = spread_rates(
                self.pruned, problem.devices.weight, problem.seed, observation.round
            )
            chosen = nearest_levels(levels, rates)
            plan = replace(
                plan, prune_heads=levels.prune_heads[chosen], prune_ffn=levels.prune_ffn[chosen]
            )
        if self.cuts:
            cut = np.resize(np.array(self.cuts, np.int64), len(everybody))
            plan = replace(plan, cut=cut, codecs=(self.codec,))
        reasons = (f"calibration: {self.label}",) * len(everybody)
        return RoundPlan(observation.round, plan, reasons), state


def spread_rates(mean: float, weight: Floats, seed: int, round: int) -> Floats:
    """Return pruning rates from 0 to twice the mean, shape (devices,), dealt by round.

    Their weighted mean is `mean`, unless a rate would exceed 0.95.

    >>> spread_rates(0.2, np.full(3, 1 / 3), 0, 0).mean().round(6)
    np.float64(0.2)
    """
    even = np.linspace(0.0, 2.0, len(weight)) if len(weight) > 1 else np.ones(1)
    rates = generator(seed, "calibration", round).permutation(even)
    centre = float(rates @ weight)
    return np.asarray(np.clip(rates * (mean / centre if centre > 0 else 0.0), 0.0, 0.95))


def nearest_levels(levels: Ladder, rates: Floats) -> list[int]:
    """Return the level of the ladder nearest to each rate."""
    return [int(np.argmin(np.abs(levels.pruned - rate))) for rate in rates]
