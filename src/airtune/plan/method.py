"""What a method is: a pure decider, the name of an aggregation and switches of local work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from airtune.plan.assignment import Assignments
from airtune.plan.link import LinkState
from airtune.plan.observe import Observation, Problem, Results
from airtune.plan.pace import Pace
from airtune.plan.shape import Floats
from airtune.plan.work import WorkSpec, check_choice

Need = Literal["capability", "channel"]
"""What a method asks to know; the engine hides the rest."""

Want = Literal["sensitivity", "pruning", "codecs", "ranks", "cut", "uploads", "steps"]
"""What is measured for a method before its first round: what heads and channels cost, by forward
passes; what pruning, codecs of cuts and of updates, ranks, being cut and other numbers of local
steps cost, by short runs."""

StateValue = NDArray[np.generic] | int | float | str | bool
State = Mapping[str, StateValue]
"""A decider's whole memory: arrays and plain values, saved as such with every round."""

Note = float | tuple[tuple[float, ...], ...]
"""A figure, or a small table in rows of equal length."""

AggregateRule = Literal[
    "average", "nested", "norm-weighted", "factored", "lifted", "stacked", "trimmed-mean", "krum"
]


@dataclass(frozen=True, slots=True)
class AggregateSpec:
    """How updates become the next global adapters; the tensors are handled in `model/aggregate`.

    average: A and B separately by data share, each row and column by those who kept it (FedIT,
    and zero-padding for unlike ranks) · nested: the same, each rank too by those who trained it:
    a rank is the first rows of A and columns of B of one common set · norm-weighted: the same by the norm of B A (HETLoRA) ·
    factored: the products B A, refactored by QR and SVD (FlexLoRA) · lifted: what the products
    have changed by, added to the global one and refactored (FedSpine) · stacked: exact sum, merged
    into the base (FLoRA) · trimmed-mean, krum: what a few dishonest devices cannot spoil, for
    updates of one shape.
    """

    rule: AggregateRule = "average"
    shrinks: bool = False
    """Pruning is cumulative: the global model keeps as much as the least pruned update, by pooled
    importance, and the state remembers what each device has left."""
    as_planned: bool = False
    """With `shrinks`: the global model keeps what the round's plan says, and no device loses more
    than that for good; scores count of devices that hold all of it."""
    agreement: bool = False
    """Tell the decider how far each update agrees with the others of its round."""
    memory: float = 0.0
    """Share of the old scores when the devices' importance is pooled anew, in [0, 1)."""
    clip_norm: float = 0.0
    """Largest norm of an update's difference to the broadcast state; 0 = not clipped."""
    trim: float = 0.1
    """Share of values left out at either end (trimmed-mean), in [0, 0.5)."""
    liars: int = 1
    """Number of dishonest devices to withstand (krum)."""
    noise: float = 0.0
    """Gaussian noise on the mean, in units of clip_norm over the number of updates; 0 = none. With
    it all updates count alike."""

    def __post_init__(self) -> None:
        check_choice("aggregation rule", self.rule, AggregateRule)


@dataclass(frozen=True, slots=True)
class Solution:
    """How a plan's optimisation ended."""

    status: Literal["optimal", "stalled", "heuristic", "infeasible"]
    objective: float
    """The planned round time in seconds, or the form named in `method`."""
    iterations: int
    residual: float
    """Largest violation of a constraint, relative."""
    gap: float
    """Certified relative distance to the optimum; NaN where nothing certifies it."""
    gap_rounded: float = float("nan")
    """The same after rounding to whole structures."""
    method: str = ""


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """The decision for one round, and why."""

    round: int
    assignments: Assignments
    reasons: tuple[str, ...]
    """One line a device, in the order of the assignments."""
    not_asked: Mapping[int, str] = field(default_factory=dict)
    """Devices that were there and, at random, are not asked this round, each with a line of reason."""
    predicted_s: float = float("nan")
    """The round time the method expects; NaN where it cannot know."""
    deadline_s: float | None = None
    """Updates later than this after the start of the round are dropped."""
    solution: Solution | None = None
    pace: Pace | None = None
    """What devices settle for themselves, within what `assignments` allow; None = nothing. Where an
    engine cannot let them settle, the assignments are carried out."""
    learning_rate: float = 1.0
    """Of this round, as a part of the recipe's; the loop sets it."""
    is_judging: bool = False
    """Devices judge the model that they are given before they train on it; the loop sets it."""
    notes: Mapping[str, Note] = field(default_factory=dict)
    """For the record, for instance the multiplier or the budget chosen."""

    def deadline_of(self, problem: Problem) -> float | None:
        """Return after how many seconds of the round an update is late: its own, or the problem's."""
        return problem.deadline_s if self.deadline_s is None else self.deadline_s

    def until_s(self, problem: Problem) -> float:
        """Return the same; inf where there is no deadline."""
        deadline_s = self.deadline_of(problem)
        return float("inf") if deadline_s is None else deadline_s

    def stands_for(self, weight: Floats) -> float:
        """Return the weight of those asked, each as many times as it counts, over that of all there.

        1 where all are asked, and on average.

        Args:
            weight: of all devices of the fleet, shape (devices,).
        """
        assignments = self.assignments
        if assignments.probability is None:
            return 1.0
        counted = float(weight[assignments.device] @ assignments.times(assignments.device.tolist()))
        return counted / float(weight[[*assignments.device.tolist(), *self.not_asked]].sum())


class Decider(Protocol):
    """The rule of a method: pure, replayable, numpy only; sees no engine, file or socket.

    Randomness comes from `airtune.keys.generator(problem.seed, name, round)`.
    """

    @property
    def needs(self) -> frozenset[Need]:
        """What it asks to know; a field of a frozen dataclass will do."""
        ...

    def init(self, problem: Problem) -> State:
        """Return the state before the first round.

        It is also asked for before anything is measured, where `measurements` and `sensitivity`
        are None, so that a setting that does not fit is refused at once.
        """
        ...

    def plan(
        self, problem: Problem, state: State, observation: Observation
    ) -> tuple[RoundPlan, State]:
        """Decide what every available device does this round."""
        ...

    def divide(
        self,
        problem: Problem,
        state: State,
        plan: RoundPlan,
        links: LinkState,
        remaining_bytes: Floats,
    ) -> Floats:
        """Return the shares, shape (n,), for the coming slot; `plan.assignments.share` keeps them."""
        ...

    def learn(self, problem: Problem, state: State, results: Results) -> State:
        """Return the state after seeing what came back."""
        ...


@dataclass(frozen=True, slots=True)
class Method:
    """A decider with the aggregation and the local work it wants."""

    name: str
    decider: Decider
    aggregate: AggregateSpec = AggregateSpec()
    work: WorkSpec = field(default_factory=WorkSpec)
    wants: frozenset[Want] = frozenset()
    """What is to be measured before the first round; nothing else is."""
    may_cut: bool = False
    """It may leave blocks to the server; a plan with a cut of another method is refused."""
    cut: int | None = None
    """Blocks on every device, where its settings fix them; None = it chooses, or does not cut."""
    may_sample: bool = False
    """It may ask devices at random; a plan of another method that does is refused."""
    paces: bool = False
    """Its plans say themselves by when devices are to be done."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Largest rank that each of its settings names; a recipe whose `lora.r` is below is refused."""
