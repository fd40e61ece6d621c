"""The round loop: observe -> plan -> execute -> aggregate -> learn -> record -> checkpoint.

It knows no method and no engine by name. After a round is recorded its checkpoint is saved; a run
that is killed at any moment goes on from the last checkpoint, and what was recorded after it is cut
off, so records and weights are those of a run that was never interrupted. Wall time appears only in
the block `measured` of a round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from airtune.cost import widest
from airtune.engine.base import Engine, Execution, refuse_malformed
from airtune.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from airtune.engine.checks import Divide, check_plan, checked_state
from airtune.errors import RecipeError, RunInterruptedError, TrainingError
from airtune.loop.judging import Progress, Target, first_progress, is_due, judged
from airtune.loop.laps import Laps
from airtune.loop.rows import Record, Round, device_columns, round_record
from airtune.model.aggregate import aggregate
from airtune.model.agreement import agreement_of
from airtune.model.base import BaseModel
from airtune.model.kept import Kept
from airtune.model.server import ServerOptimizer, advance, evaluated
from airtune.model.state import GlobalState, initial_state
from airtune.plan import (
    Floats,
    LinkState,
    Method,
    Observation,
    Problem,
    RoundPlan,
    State,
    mask_problem,
)
from airtune.plan.blame import blamed
from airtune.records import RunWriter
from airtune.work.network import kept_by

OnRound = Callable[[Mapping[str, Any]], None]
Quality = Mapping[str, float] | None
"""None = not judged."""


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How the loop watches a run."""

    evaluate_every: int = 1
    """Rounds between evaluations on the devices' validation data; 0 = never."""
    target: Target | None = None
    stop_at_target: bool = False
    patience: int = 5
    """Rounds without a single usable update after which the run is given up."""
    idle_s: float = 60.0
    """Virtual seconds the server waits when no device is there."""
    scale: float = 2.0
    """alpha / rank of the adapters; used by the aggregation that merges."""
    decay: float = 1.0
    """Part of the learning rate that is left at the end of the budget, falling linearly."""
    server: ServerOptimizer = field(default_factory=ServerOptimizer)
    evaluate_raw: bool = True
    """Where the server keeps a mean, validate its last weights too."""
    judge_along: bool = False
    """Devices judge a model with the task that trains it; see `airtune.loop.judging`."""


@dataclass(frozen=True, slots=True)
class Run:
    """All that a run is made of."""

    method: Method
    problem: Problem
    """Unmasked; the method sees it through `mask_problem`."""
    engine: Engine
    writer: RunWriter
    identity: str
    """A hash of recipe, data and model: only such a run may go on from its checkpoints."""
    settings: LoopSettings = LoopSettings()
    afterwards: Callable[[GlobalState], Mapping[str, Any]] | None = None
    """Measured once on the last state, off the clock; what it returns stands in `result.json`."""

    @property
    def known(self) -> Problem:
        """What the method may know."""
        return mask_problem(self.problem, self.method.decider.needs)


@dataclass(frozen=True, slots=True)
class LoopResult:
    """What a run ended with."""

    state: GlobalState
    rounds: int
    time_s: float
    results: Mapping[str, Any]
    """As written to `result.json`."""


def begin(run: Run, state: GlobalState) -> Checkpoint:
    """Return the start of a new run: the method's first state, and the quality before tuning.

    Args:
        run: what the run is made of.
        state: fresh adapters and head.
    """
    with blamed(run.method, "init"):
        method = checked_state(run.method.decider.init(run.known))
    progress = first_progress(is_judged=run.settings.evaluate_every > 0)
    if run.settings.evaluate_every and not run.settings.judge_along:
        progress["initial"] = dict(run.engine.evaluate(state, "validation")) or None
        if progress["initial"] is None and run.settings.target is not None:
            raise RecipeError(
                "target needs validation, and there is none: no device has the memory for the whole "
                "model, and the server has no data; leave target out"
            )
    return Checkpoint(0, 0.0, state, method, progress)


def run_to_end(
    run: Run, base: BaseModel, *, on_round: OnRound | None = None, laps: Laps | None = None
) -> LoopResult:
    """Run what is left of a run, from its last checkpoint where there is one; close its engine.

    Args:
        run: what the run is made of.
        base: from which a new run draws its adapters.
        on_round: told each round's record.
        laps: a watch for the real clock; None = the run is on the virtual clock alone.

    Raises:
        CheckpointError: if the checkpoint is damaged or another run's.
    """
    try:
        saved = load_checkpoint(run.writer.folder / "checkpoint", identity=run.identity)
        start = saved or begin(run, initial_state(base, run.problem.workload, run.problem.seed))
        if laps is not None:
            laps.lap("preparing_s")
        return run_rounds(run, start, on_round=on_round, laps=laps)
    finally:
        run.engine.close()


def run_rounds(
    run: Run, start: Checkpoint, *, on_round: OnRound | None = None, laps: Laps | None = None
) -> LoopResult:
    """Run to the last round, or to the target, and test once; empty rounds are counted anew.

    Args:
        run: what the run is made of; its writer stands after `start.rounds` rounds.
        start: from `begin`, or the checkpoint to go on from.
        on_round: told each round's record, for a progress display.
        laps: a watch that has counted what went before; None = nothing did.

    Raises:
        MethodError: if the method broke its contract.
        TrainingError: if `patience` rounds in a row gave no usable update.
        StorageError: if the disk is full; the last checkpoint stands.
        RunInterruptedError: on Ctrl-C; the last finished round is saved.
    """
    now, laps = replace(start, progress={**start.progress, "empty": 0}), laps or Laps()
    run.engine.restore(start.engine)
    try:
        for finished in _rounds(run, now, on_round, laps):
            now = finished
        results = _results(run, now)
        if run.afterwards is not None:
            results |= run.afterwards(now.state)
        laps.lap("test_s")
        run.writer.finish(results | {"measured": laps.take()})
    except KeyboardInterrupt as error:
        raise RunInterruptedError(
            f"interrupted after {now.rounds} of {run.problem.rounds} rounds, which are saved; go on "
            f"with: airtune run --resume {run.writer.folder}"
        ) from error
    return LoopResult(now.state, now.rounds, now.time_s, results)


def _rounds(
    run: Run, start: Checkpoint, on_round: OnRound | None, laps: Laps
) -> Iterator[Checkpoint]:
    """Yield the checkpoint after each round, once it is saved."""
    now = start
    while not _is_used_up(run, now.rounds, now.time_s) and not _is_over(run, now):
        done = _execute(run, now, laps)
        progress = _progress(run, now, done)
        validation = _validate(run, now, done, progress)
        if validation is not None:
            progress = judged(
                progress | {"judged": True},
                validation,
                run.settings.target,
                rounds=now.rounds + 1,
                time_s=done.end_s,
            )
        record = round_record(run.problem, now, done, validation)
        if now.rounds == 0:
            record["initial"] = progress["initial"]
        if validation is not None and run.settings.evaluate_raw and done.state.average:
            record["validation_raw"] = dict(run.engine.evaluate(done.state, "validation"))
        laps.lap("validation_s")
        record["measured"] = laps.take()
        run.writer.append(record, device_columns(run.problem, done))
        now = Checkpoint(
            now.rounds + 1, done.end_s, done.state, done.method, progress, run.engine.snapshot()
        )
        best = None if progress["best"] is None else progress["best"]["round"] + 1
        save_checkpoint(run.writer.folder / "checkpoint", now, identity=run.identity, best=best)
        if on_round is not None:
            on_round(record)
        laps.lap("saving_s")
        yield now


def _is_used_up(run: Run, rounds: int, time_s: float) -> bool:
    """Return whether the budget of rounds, or of seconds, is used up."""
    return run.problem.progress(rounds, time_s) >= 1.0


def _is_over(run: Run, now: Checkpoint) -> bool:
    if now.progress["empty"] >= run.settings.patience:
        raise TrainingError(
            f"no device returned a usable update in {now.progress['empty']} rounds in a row; "
            f"devices.csv in {run.writer.folder} says why; loosen the deadline, lower the learning "
            "rate, give devices more memory, raise limits.device_bytes_per_month or "
            "limits.joules_per_round, or start the devices that are away, and go on with --resume"
        )
    return run.settings.stop_at_target and now.progress["reached"] is not None


def _execute(run: Run, now: Checkpoint, laps: Laps) -> Round:
    """Observe, plan, execute, aggregate and learn."""
    decider, observation = run.method.decider, run.engine.observe(now.rounds, now.time_s)
    plan, method, left_out = _plan(run, now, observation)
    laps.lap("plan_s")
    if plan is None:
        idle = replace(now.state, round=now.state.round + 1)
        until_s = run.engine.idle_until_s(now.time_s, run.settings.idle_s)
        return Round(None, left_out, None, idle, now.method, now.time_s, until_s)
    is_judging = _rides(run, now.state) and is_due(now.rounds, run.settings.evaluate_every)
    plan = replace(plan, is_judging=is_judging)
    divide = _divide(run, method, plan)
    execution = run.engine.execute(plan, now.state, divide, start_s=now.time_s)
    laps.lap("tasks_s")
    execution = refuse_malformed(execution, run.problem.shape)
    execution = _with_agreement(run, execution)
    state = _aggregate(run, plan, now.state, execution)
    with blamed(run.method, "learn"):
        method = checked_state(decider.learn(run.known, method, execution.results))
    done = execution.plan or plan
    laps.lap("aggregation_s")
    left_out |= plan.not_asked
    return Round(done, left_out, execution, state, method, execution.start_s, execution.end_s)


def _plan(
    run: Run, now: Checkpoint, observation: Observation
) -> tuple[RoundPlan | None, State, dict[int, str]]:
    """Have the method plan for devices whose limits of bytes and joules hold what it tells them.

    A decider is a pure function, so it is asked anew without those that it told too much.

    Returns:
        The plan, None where nobody is left; the method's state; who was left out, and why.
    """
    decider, known = run.method.decider, run.known
    left_out: dict[int, str] = {}
    while np.any(observation.available):
        with blamed(run.method, "plan"):
            plan, method = decider.plan(known, now.method, observation)
            check_plan(plan, observation, run.method)
        used = run.problem.progress(observation.round, observation.time_s)
        plan = replace(plan, learning_rate=1.0 - (1.0 - run.settings.decay) * used)
        faults = run.engine.over_cap(plan, now.state)
        over = {
            int(device): fault
            for device, fault in zip(plan.assignments.device, faults, strict=True)
            if fault
        }
        if not over:
            return plan, method, left_out
        left_out |= over
        available = observation.available.copy()
        available[list(over)] = False
        observation = replace(observation, available=available)
    return None, now.method, left_out


def _divide(run: Run, method: State, plan: RoundPlan) -> Divide:
    """Return how the link is divided in later slots; a method blind to the channel cannot."""
    decider, known = run.method.decider, run.known

    def keep(links: LinkState, remaining_bytes: Floats) -> Floats:
        return plan.assignments.share

    def ask(links: LinkState, remaining_bytes: Floats) -> Floats:
        with blamed(run.method, "divide"):
            return decider.divide(known, method, plan, links, remaining_bytes)

    return ask if "channel" in decider.needs else keep


def _with_agreement(run: Run, execution: Execution) -> Execution:
    """Return what came of a round with how far its updates agree, where the method asks for it."""
    if not run.method.aggregate.agreement:
        return execution
    results, updates = execution.results, execution.updates
    found = agreement_of(updates, execution.state, run.problem.shape)
    place = np.searchsorted(results.device, [update.device for update in updates])
    columns = [np.full(len(results.device), np.nan) for _ in found]
    for column, values in zip(columns, found, strict=True):
        column[place] = values
    agreement, noise = columns
    return replace(execution, results=replace(results, agreement=agreement, agreement_noise=noise))


def _aggregate(run: Run, plan: RoundPlan, before: GlobalState, execution: Execution) -> GlobalState:
    if not execution.updates:
        own = execution.state
        if execution.is_coded:
            own = replace(own, adapters=before.adapters, head=before.head)
        return replace(own, round=own.round + 1)
    devices = [update.device for update in execution.updates]
    weight, parts = run.problem.devices.weight, [update.part for update in execution.updates]
    after = aggregate(
        run.method.aggregate,
        execution.state,
        execution.updates,
        weight[devices] * plan.assignments.times(devices) * parts,
        shape=run.problem.shape,
        scale=run.settings.scale,
        seed=run.problem.seed,
        planned=_planned(run, plan, execution.state),
    )
    rule, part = run.method.aggregate.rule, plan.stands_for(weight)
    return advance(run.settings.server, before, execution.state, after, rule=rule, stands_for=part)


def _planned(run: Run, plan: RoundPlan, state: GlobalState) -> Kept | None:
    """Return what a plan leaves of the model, for methods whose plan says it."""
    if not run.method.aggregate.as_planned:
        return None
    row = widest(plan.assignments).row(0)
    return kept_by(row, state, run.problem.shape, run.method.work)


def _validate(run: Run, now: Checkpoint, done: Round, progress: Progress) -> Quality:
    """Have the model judged by itself, where it is to be and no later task does it."""
    settings = run.settings
    if done.execution is None and done.left_out and progress["judged"]:
        return None  # to judge again what has not changed would cost devices bytes they lack
    is_over = settings.stop_at_target and progress["reached"] is not None
    is_last = is_over or _is_used_up(run, now.rounds + 1, done.end_s)
    if not settings.evaluate_every or not (
        is_last or is_due(now.rounds + 1, settings.evaluate_every)
    ):
        return None
    if _rides(run, done.state) and not is_last:
        return None
    return dict(run.engine.evaluate(evaluated(done.state), "validation")) or None


def _rides(run: Run, state: GlobalState) -> bool:
    """Return whether devices judge a model with the tasks that train it: as it is, not a mean."""
    return run.settings.judge_along and not state.average


def _progress(run: Run, now: Checkpoint, done: Round) -> Progress:
    """Return what the loop remembers of a round, with what its devices said of its first model."""
    progress, execution = dict(now.progress), done.execution
    came = execution is not None and len(execution.updates) > 0
    progress["empty"] = 0 if came else progress["empty"] + 1
    # where nobody worked, the model is the one that was judged, or was not
    progress["judged"] = execution is None and progress["judged"]
    if execution is None or execution.validation is None:
        return progress
    return judged(
        progress, execution.validation, run.settings.target, rounds=now.rounds, time_s=now.time_s
    )


def _results(run: Run, now: Checkpoint) -> Record:
    """Return what the run ended with; this is the one time that the test data are used."""
    progress = now.progress
    raw = {"test_raw": dict(run.engine.evaluate(now.state, "test"))} if now.state.average else {}
    return {
        "rounds": now.rounds,
        "time_s": now.time_s,
        "test": dict(run.engine.evaluate(evaluated(now.state), "test")),
        **raw,
        "initial": progress["initial"],
        "validation_best": progress["best"],
        "validation_last": progress.get("last"),
        "target_reached": progress["reached"],
    }
