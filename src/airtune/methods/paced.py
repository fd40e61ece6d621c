"""Local steps by a deadline, for any method: `train.steps: deadline`.

The method decides all it decides; beside that its devices are told a time by which to be done and do as
many local steps as fit, by their own clock. The time is learnt from what the fleet's answers took
(`airtune.solve.deadline`), a step being worth as much as any other. The first round, of which nothing
is known, has the recipe's local steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from airtune.cost import train_flops, upload_bytes
from airtune.keys import generator
from airtune.plan import (
    Assignments,
    Decider,
    Floats,
    Ints,
    LinkState,
    Need,
    Observation,
    Pace,
    Problem,
    Results,
    RoundPlan,
    State,
    whole_model,
)
from airtune.plan.method import StateValue
from airtune.plan.pace import Arm
from airtune.solve.deadline import NO_ANSWERS, Answers, best_deadline

MOST_STEPS = 4
"""Most local steps of a device, in times of the recipe's, where it times them itself."""
_COLUMNS = ("unit_s", "down_s", "byte_s")


@dataclass(frozen=True, slots=True)
class Paced:
    """A decider whose devices time their own steps."""

    inner: Decider
    most_steps: int
    """Most local steps of a device in a round."""

    @property
    def needs(self) -> frozenset[Need]:
        """What the method itself asks to know; a deadline needs nothing of it."""
        return self.inner.needs

    def init(self, problem: Problem) -> State:
        """Return the method's state, and that nothing is known of the fleet."""
        return {**self.inner.init(problem), **no_answers()}

    def plan(
        self, problem: Problem, state: State, observation: Observation
    ) -> tuple[RoundPlan, State]:
        """Return the method's plan with a deadline, once answers have come."""
        plan, after = self.inner.plan(problem, state, observation)
        if len(answers_of(state)) and len(plan.assignments):
            draws = generator(problem.seed, "pace", observation.round)
            value = np.arange(1.0, self.most_steps + 1.0)[None]
            pace = best_pace(problem, state, plan.assignments, value, draws=draws)
            notes = {**plan.notes, "deadline_s": pace.finish_s}
            plan = replace(plan, pace=pace, notes=notes, predicted_s=float("nan"))
        return plan, {**after, **_answers_in(state)}

    def divide(
        self,
        problem: Problem,
        state: State,
        plan: RoundPlan,
        links: LinkState,
        remaining_bytes: Floats,
    ) -> Floats:
        """Divide as the method does."""
        return self.inner.divide(problem, state, plan, links, remaining_bytes)

    def learn(self, problem: Problem, state: State, results: Results) -> State:
        """Learn as the method does, and what answers took."""
        return {**self.inner.learn(problem, state, results), **joined_answers(state, results)}


def best_pace(
    problem: Problem,
    state: State,
    assignments: Assignments,
    value: Floats,
    *,
    draws: np.random.Generator,
    arms: tuple[Arm, ...] = (),
) -> Pace:
    """Return the pace of a round with the deadline that gains most a second.

    Args:
        problem: shape, workload and perhaps a deadline that nothing may pass.
        state: with the fleet's answers, at least one.
        assignments: the assignments; the mean of them is what a device is taken to do without arms.
        value: of each arm after 1, 2, ... steps, shape (arms, steps).
        draws: for the rounds that deadlines are tried on.
        arms: () = each device's own assignment.
    """
    if arms:
        flops, sent = arm_costs(problem, arms)
    else:
        one = replace(assignments, local_steps=np.ones_like(assignments.local_steps))
        flops = train_flops(problem.shape, problem.workload, one).mean(keepdims=True)
        sent = upload_bytes(problem.shape, problem.workload, one).mean(keepdims=True)
    table = tuple(map(tuple, value.tolist()))
    pace = Pace(1.0, table, arms)
    finish_s = best_deadline(
        answers_of(state),
        pace,
        step_flops=flops,
        up_bytes=sent,
        asked=len(assignments),
        generator=draws,
    )
    limit_s = problem.deadline_s
    return replace(pace, finish_s=finish_s if limit_s is None else min(finish_s, limit_s))


def arm_costs(problem: Problem, arms: tuple[Arm, ...]) -> tuple[Floats, Floats]:
    """Return the FLOPs of one step and the bytes of an update of each arm, shape (arms,)."""
    device = np.arange(len(arms))
    rows = with_arms(
        whole_model(device, rank=1, local_steps=1, share=np.ones(len(arms))), arms, device
    )
    return (
        train_flops(problem.shape, problem.workload, rows),
        upload_bytes(problem.shape, problem.workload, rows),
    )


def with_arms(assignments: Assignments, arms: tuple[Arm, ...], chosen: Ints) -> Assignments:
    """Return assignments with an arm, by its index, for each device."""
    rows = np.array(arms)[chosen]
    return replace(
        assignments, prune_heads=rows[:, 0], prune_ffn=rows[:, 1], rank=rows[:, 2].astype(np.int64)
    )


def no_answers() -> dict[str, StateValue]:
    """Return the part of a state that remembers answers, empty."""
    return _arrays(NO_ANSWERS)


def answers_of(state: Mapping[str, StateValue]) -> Answers:
    """Return the answers that a state remembers."""
    return Answers(*(np.asarray(state[f"pace_{name}"]) for name in _COLUMNS))


def joined_answers(state: Mapping[str, StateValue], results: Results) -> dict[str, StateValue]:
    """Return the remembered answers with those of a round that came in time."""
    with np.errstate(divide="ignore", invalid="ignore"):
        unit_s = results.compute_s / results.flops
        byte_s = results.upload_s / results.upload_bytes
    came = results.status == "ok"
    for column in (unit_s, results.download_s, byte_s):
        came = came & np.isfinite(column) & (column >= 0.0)
    came = came & (unit_s > 0.0)
    fresh = Answers(unit_s[came], results.download_s[came], byte_s[came])
    return _arrays(answers_of(state).joined(fresh))


def _answers_in(state: State) -> dict[str, StateValue]:
    return {f"pace_{name}": state[f"pace_{name}"] for name in _COLUMNS}


def _arrays(answers: Answers) -> dict[str, StateValue]:
    return {f"pace_{name}": getattr(answers, name) for name in _COLUMNS}
