"""What an engine is: it executes a round's plan, and it alone knows time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from airtune.engine.checks import Divide
from airtune.errors import ModelError, RecipeError
from airtune.model.state import GlobalState, Update
from airtune.model.update import check_update
from airtune.plan import Floats, ModelShape, Observation, Problem, Results, RoundPlan, WorkSpec
from airtune.work.jobs import TrainSettings

Split = Literal["validation", "test"]


@dataclass(frozen=True, slots=True)
class Setup:
    """What had to happen once before the devices could begin, for instance measuring importance."""

    duration_s: float = 0.0
    upload_bytes: float = 0.0
    download_bytes: float = 0.0
    energy_j: float = 0.0
    each_bytes: float = 0.0
    """Received and sent by each device that was part of it; what counts of its month."""
    devices: tuple[int, ...] = ()
    """Those that were part of it."""
    faults: tuple[str, ...] = ()
    """Why devices that were asked have no part in it, one text each."""


@dataclass(frozen=True, slots=True)
class ExpectedRound:
    """Seconds that a round is expected to take: four rounds of five end between low and high."""

    low_s: float
    middle_s: float
    high_s: float


@dataclass(frozen=True, slots=True)
class Execution:
    """What came of a plan. Columns follow the devices of the plan, shape (n,)."""

    results: Results
    updates: tuple[Update, ...]
    """Of the devices whose status is ok, in the order of the plan."""
    state: GlobalState
    """The state that the devices worked from, with whatever `setup` added to it."""
    start_s: float
    """When the devices began, after the setup."""
    end_s: float
    bandwidth_hz: Floats
    """Hertz of the uplink at the start of the round; NaN on a link of measured capacity."""
    memory_bytes: Floats
    faults: tuple[str, ...]
    """Why a device's update does not count; empty where it does."""
    setup: Setup = field(default_factory=Setup)
    planned_peak_bytes: Floats | None = None
    """By the cost model, where `results` hold what was measured; None where they hold the same."""
    expected: ExpectedRound | None = None
    """How long the round was expected to take, by an engine that learns it; None = as planned."""
    learnt: Mapping[str, object] | None = None
    """What a record holds of speeds and rates learnt so far, in plain values; None = none are."""
    validation: Mapping[str, float] | None = None
    """Quality of the model that the devices were given, where they judged it; see `RoundPlan`."""
    is_coded: bool = False
    """The state's adapters and head came out of the codec of the broadcast: the server has others."""
    plan: RoundPlan | None = None
    """The plan as it was carried out, where devices settled something for themselves; None = as told."""
    buffered: Mapping[str, object] | None = None
    """What a record holds of an asynchronous round: how many rounds ago each device that arrived had
    begun, and how many are on their way; None where rounds wait for all."""
    split: Mapping[str, object] | None = None
    """What a record holds of a split round, in plain values; None where nothing was cut."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How an engine runs a fleet."""

    train: TrainSettings = field(default_factory=TrainSettings)
    participation: float = 1.0
    """Fraction of the available devices that are asked each round, in (0, 1]."""
    dropout: float = 0.0
    """Probability that a device vanishes after it was given its assignment, in [0, 1)."""
    learns: bool = True
    """Speeds and rates that differ from the declared ones are learnt; otherwise those are believed."""
    threads: int = 1
    """Threads of torch; another number gives other last bits."""
    answer_of: Callable[[str], str | None] | None = None
    """Finds the answer in a generated text; None = exact match is not measured on the test set."""
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        if not 0.0 < self.participation <= 1.0:
            raise RecipeError(
                f"participation must be above 0 and at most 1, got {self.participation:g}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise RecipeError(f"dropout must be at least 0 and below 1, got {self.dropout:g}")
        if self.threads < 1:
            raise RecipeError(f"threads must be at least 1, got {self.threads}")


class Engine(Protocol):
    """Executes plans; the rounds it is given follow one another."""

    def observe(self, round: int, time_s: float) -> Observation:
        """Return what the method may know before it plans, masked by its needs."""
        ...

    def execute(
        self, plan: RoundPlan, state: GlobalState, divide: Divide, *, start_s: float
    ) -> Execution:
        """Have the devices do their work and wait for it, or for the deadline."""
        ...

    def over_cap(self, plan: RoundPlan, state: GlobalState) -> tuple[str, ...]:
        """Return why a row's device is over a limit of bytes or joules; empty where it is within all."""
        ...

    def idle_until_s(self, time_s: float, idle_s: float) -> float:
        """Return when to look again where no device could take part.

        Raises:
            InfeasibleError: if waiting is of no use.
        """
        ...

    def evaluate(self, state: GlobalState, split: Split) -> Mapping[str, float]:
        """Return loss, perplexity or accuracy, and the worst tenth; off the clock."""
        ...

    def snapshot(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what an engine remembers from round to round beside the state it is given.

        Saved with every checkpoint; {} where nothing is.
        """
        ...

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a snapshot, {} at the start of a run.

        Raises:
            CheckpointError: if it is not one of this engine.
        """
        ...

    def close(self) -> None:
        """Give back whatever is held."""
        ...


def with_work(problem: Problem, work: WorkSpec) -> Problem:
    """Return the problem whose costs hold what the local work and its measuring take."""
    scores = problem.workload.scores
    if work.importance == "lora-gradient":
        scores = "gradient"
    elif work.importance == "salience":
        scores = "activation"
    workload = replace(problem.workload, scores=scores, distills=work.distill > 0.0)
    return replace(problem, work=work, workload=workload)


def refuse_malformed(execution: Execution, shape: ModelShape) -> Execution:
    """Return the execution without updates that nothing can be made of, their devices refused.

    Args:
        execution: as the engine gives it.
        shape: the unpruned model.
    """
    faults: dict[int, str] = {}
    for update in execution.updates:
        try:
            check_update(update, execution.state, shape)
        except ModelError as error:
            faults[update.device] = str(error)
    if not faults:
        return execution
    status, reasons = execution.results.status.copy(), list(execution.faults)
    for index, device in enumerate(execution.results.device.tolist()):
        if device in faults:
            status[index], reasons[index] = "refused", faults[device]
    return replace(
        execution,
        results=replace(execution.results, status=np.asarray(status)),
        updates=tuple(item for item in execution.updates if item.device not in faults),
        faults=tuple(reasons),
    )
