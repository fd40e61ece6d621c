"""FedSpine: one deadline for all, and for each device the rank, width and steps that fit it.

Devices prune the same structures, so that they train parts of one model: the first r rows and columns
of one set of LoRA factors, the first w channels of one order of importance. A server that asks few of
many devices knows none of them, so it does not decide for them. It learns what a step, a rank and a
width are worth (`airtune.solve.values`), by which time a round should be over
(`airtune.solve.deadline`), and tells both; each device picks, by its own clock, what is worth most in
that time (`airtune.plan.pace`). The method asks for neither capability nor channel.

Source: Efficient Deployment of Large Language Models on Resource-constrained Devices, arXiv
2501.02438, gives pruning, LoRA and an online bandit without prior knowledge; nested ranks and widths,
the deadline and the reward are reconstructed. `form: published` is closest to the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np

from airtune.errors import RecipeError
from airtune.keys import generator
from airtune.methods.blind import equal_links
from airtune.methods.paced import (
    MOST_STEPS,
    answers_of,
    arm_costs,
    best_pace,
    joined_answers,
    no_answers,
    with_arms,
)
from airtune.methods.published import Learner, PublishedFedSpine, check_fleet
from airtune.methods.seen import available
from airtune.methods.sparsity import (
    LEVELS,
    PruningTarget,
    Structures,
    levels_of,
    schedule_of,
    schedule_round,
)
from airtune.plan import (
    Assignments,
    Bools,
    Floats,
    Ints,
    LinkState,
    Need,
    Note,
    Observation,
    Pace,
    Problem,
    Results,
    RoundPlan,
    State,
)
from airtune.plan.pace import Arm
from airtune.solve.values import Values, begin_values, learn_values, worth

Form = Literal["bandit", "random", "fixed", "published"]

FIRST_STEPS = 2
"""Local steps of the first round, before anything is known of the fleet."""


@dataclass(frozen=True, slots=True)
class FedSpine:
    """The decider of FedSpine; `random` and `fixed` are its controls, with the same deadline."""

    sparsity: float = 0.5
    """Fraction of the blocks' weights that is pruned at the end, to the nearest whole structures, the
    same on every device."""
    structures: Structures = "auto"
    """What is pruned; auto = FFN channels, and heads if the family's config can say so."""
    pace: Literal["once", "gradual"] = "once"
    """once = prune before the first round, by fluctuation scores; gradual = the cubic schedule, by
    gradient scores of devices that hold all that is left of the model."""
    form: Form = "bandit"
    """How rank, width and steps are chosen: bandit = each device, by learnt values; random and fixed =
    without learning; published = the paper's bandit over ratios and ranks, with the settings after
    `most_steps`."""
    min_rank: int = 2
    """Smallest rank; the largest is lora.r."""
    min_width: float | Literal["auto"] = "auto"
    """Narrower of two widths, as a part of what pruning leaves; 1 = one width. auto = a half for
    classifiers and 1 for language models, of which half the channels are too few to learn from."""
    fixed_rank: int = 0
    """Rank of the forms that do not choose one; 0 = lora.r."""
    most_steps: int = 0
    """Most local steps of a device in a round; 0 = four times train.local_steps."""
    explore: float = 0.05
    """Scale of the confidence bound."""
    discount: float = 0.98
    """What a trial counts a round later."""
    warmup: float = 0.0
    """Part of the rounds before the first pruning (gradual, published)."""
    cooldown: float = 0.5
    """Part of the rounds that only tune at the end (gradual, published)."""
    prune_every: int = 20
    """Local iterations between prunings (gradual, published)."""
    learner: Learner = "pooled"
    """Of `published`: who learns."""
    groups: int = 3
    """Of `published`: how many kinds of behaviour are told apart."""
    fixed_ratio: float = 0.5
    """Of `published`: ratio of the learners that do not choose one."""
    over: Literal["layers", "model"] = "layers"
    """Of `published`: where structures compete."""
    own_importance: float = 0.0
    """Of `published`: weight of a device's own scores when it prunes."""
    needs: frozenset[Need] = frozenset()

    def __post_init__(self) -> None:
        _ = self.published  # checks what both have in common, and its own
        if self.min_width != "auto" and not 0.0 < self.min_width <= 1.0:
            raise RecipeError(
                f"min_width must be auto, or above 0 and at most 1, got {self.min_width}"
            )
        if self.most_steps < 0:
            raise RecipeError(f"most_steps must be at least 0, got {self.most_steps}")

    @property
    def published(self) -> PublishedFedSpine:
        """The decider of `form: published` with these settings."""
        shared = [entry.name for entry in fields(PublishedFedSpine)]
        return PublishedFedSpine(**{name: getattr(self, name) for name in shared})

    @property
    def target(self) -> PruningTarget:
        """Where pruning ends."""
        return PruningTarget(self.sparsity, self.structures)

    def init(self, problem: Problem) -> State:
        """Return the state that knows nothing.

        Raises:
            RecipeError: if the sparsity is outside what the model allows.
        """
        levels_of(problem, self.target)
        grid = np.zeros(
            (len(self._ranks(problem)) * len(self._widths(problem)), self._most(problem))
        )
        return {
            **_arrays(begin_values()),
            **no_answers(),
            "devices": len(problem.devices),
            "left": 1.0,
            "signal": 0.0,
            "seconds": 0.0,
            "grid_signal": grid,
            "grid_seconds": grid.copy(),
        }

    def plan(
        self, problem: Problem, state: State, observation: Observation
    ) -> tuple[RoundPlan, State]:
        """Tell every available device the deadline, the arms and what they are worth."""
        check_fleet(problem, int(np.asarray(state["devices"])))
        device, level = available(observation), self._level(problem, observation)
        levels = levels_of(problem, self.target)
        after = {**state, "left": 1.0 - float(levels.prune_ffn[level])}
        arms = self._arms(problem, level)
        assignments = _whole(problem, device, arms)
        draws = generator(problem.seed, "fedspine", observation.round)
        if self.form == "random":
            assignments = with_arms(assignments, arms, draws.integers(0, len(arms), len(device)))
        pruned = float(levels.pruned[level])
        line = f"prunes {pruned:.1%} of {levels.pruned[-1]:.1%}"
        pace = None
        if len(answers_of(state)):
            pace = self._pace(problem, state, assignments, arms, draws)
        else:
            assignments = replace(
                assignments, local_steps=np.full_like(assignments.local_steps, FIRST_STEPS)
            )
            line += f"; nothing is known yet: {FIRST_STEPS} steps for all"
        return RoundPlan(
            observation.round,
            assignments,
            tuple(f"{problem.devices.names[index]}: {line}" for index in device),
            deadline_s=problem.deadline_s,
            notes=self._notes(state, pruned, pace),
            pace=pace,
        ), after

    def divide(
        self,
        problem: Problem,
        state: State,
        plan: RoundPlan,
        links: LinkState,
        remaining_bytes: Floats,
    ) -> Floats:
        """Keep the equal shares: the method does not see the channel."""
        return plan.assignments.share

    def learn(self, problem: Problem, state: State, results: Results) -> State:
        """Learn what the fleet's answers took, and what steps, ranks and widths were worth."""
        check_fleet(problem, int(np.asarray(state["devices"])))
        after = {**state, **joined_answers(state, results)}
        done = results.done
        came = (results.status == "ok") & np.isfinite(results.finish_s)
        if done is None or not came.any():
            return after
        left = float(np.asarray(state["left"]))
        x = np.stack(
            [
                np.log(done.local_steps),
                np.log(done.rank / problem.workload.rank),
                np.log(np.minimum((1.0 - done.prune_ffn) / left, 1.0)),
            ],
            axis=1,
        )[came]
        values = _values(state)
        after |= self._gained(problem, state, results, came, worth(values, x))
        if results.agreement is not None and results.agreement_noise is not None:
            values = learn_values(
                values,
                x,
                results.agreement[came],
                results.agreement_noise[came],
                discount=self.discount,
            )
        return after | _arrays(values)

    def _level(self, problem: Problem, observation: Observation) -> int:
        if self.pace == "once":
            return LEVELS
        schedule = schedule_of(
            problem, warmup=self.warmup, cooldown=self.cooldown, prune_every=self.prune_every
        )
        return schedule.floor(schedule_round(problem, observation))

    def _most(self, problem: Problem) -> int:
        return self.most_steps or MOST_STEPS * problem.workload.local_steps

    def _widths(self, problem: Problem) -> tuple[float, ...]:
        narrow = self.min_width
        if narrow == "auto":
            narrow = 1.0 if problem.shape.task == "causal-lm" else 0.5
        return (1.0, narrow) if self.form == "bandit" and narrow < 1.0 else (1.0,)

    def _ranks(self, problem: Problem) -> list[int]:
        """Return the ranks that may be played, falling."""
        most = problem.workload.rank
        if self.form == "fixed":
            return [self.fixed_rank or most]
        ranks = [most]
        while ranks[-1] // 2 >= self.min_rank:
            ranks.append(ranks[-1] // 2)
        return ranks

    def _arms(self, problem: Problem, level: int) -> tuple[Arm, ...]:
        """Return the arms; the first keeps all that is left, at the largest rank."""
        levels = levels_of(problem, self.target)
        heads, ffn = float(levels.prune_heads[level]), float(levels.prune_ffn[level])
        return tuple(
            (heads, 1.0 - (1.0 - ffn) * width, rank)
            for width in self._widths(problem)
            for rank in self._ranks(problem)
        )

    def _x(self, problem: Problem) -> Floats:
        """Return the logarithms that values are linear in, shape (arms, steps, 3)."""
        steps = np.log(np.arange(1, self._most(problem) + 1))
        rows = [
            (np.log(rank / problem.workload.rank), np.log(width))
            for width in self._widths(problem)
            for rank in self._ranks(problem)
        ]
        return np.stack(
            [
                np.stack([steps, np.full_like(steps, rank), np.full_like(steps, width)], axis=1)
                for rank, width in rows
            ]
        )

    def _pace(
        self,
        problem: Problem,
        state: State,
        assignments: Assignments,
        arms: tuple[Arm, ...],
        draws: np.random.Generator,
    ) -> Pace:
        value = worth(_values(state), self._x(problem), explore=self.explore)
        if self.form == "random":  # each has one arm, and is worth what its steps are
            return best_pace(problem, state, assignments, value[:1], draws=draws)
        return best_pace(problem, state, assignments, value, arms=arms, draws=draws)

    def _gained(
        self, problem: Problem, state: State, results: Results, came: Bools, gained: Floats
    ) -> dict[str, Floats | float]:
        """Return what was gained so far, and what every fixed (arm, steps) would have."""
        answers, arms = (
            answers_of(joined_answers(no_answers(), results)),
            self._arms(problem, LEVELS),
        )
        if not len(answers):
            return {}
        step_flops, sent_bytes = arm_costs(problem, arms)
        steps = np.arange(1, self._most(problem) + 1)
        one = answers.unit_s[:, None, None] * step_flops[:, None] * steps
        finish_s = (
            answers.down_s[:, None, None]
            + one
            + (answers.byte_s[:, None, None] * sent_bytes[:, None])
        )
        value = worth(_values(state), self._x(problem))
        return {
            "signal": float(np.asarray(state["signal"])) + float(gained.sum()),
            "seconds": float(np.asarray(state["seconds"])) + float(results.finish_s[came].max()),
            "grid_signal": np.asarray(state["grid_signal"]) + len(answers) * value,
            "grid_seconds": np.asarray(state["grid_seconds"]) + finish_s.max(axis=0),
        }

    def _notes(self, state: State, pruned: float, pace: Pace | None) -> dict[str, Note]:
        """Return what the round rests on, and the regret on the fleet's own clock.

        `signal_per_s` is what rounds so far were worth a second by the values learnt, and
        `fixed_signal_per_s` what the best fixed rank, width and number of steps would have been.
        """
        values = _values(state)
        notes: dict[str, Note] = {"mean_pruned": pruned}
        if pace is not None:
            notes["deadline_s"] = pace.finish_s
        for name, exponent in zip(("steps", "rank", "width"), values.theta, strict=True):
            notes[f"worth_{name}"] = float(exponent)
        spread = np.sqrt(np.diag(np.linalg.inv(values.precision)))
        notes["worth_sd"] = (tuple(spread.tolist()),)
        seconds = float(np.asarray(state["seconds"]))
        if seconds > 0.0:
            grid = np.asarray(state["grid_signal"]) / np.asarray(state["grid_seconds"])
            notes["signal_per_s"] = float(np.asarray(state["signal"])) / seconds
            notes["fixed_signal_per_s"] = float(grid.max())
        return notes


def _whole(problem: Problem, device: Ints, arms: tuple[Arm, ...]) -> Assignments:
    heads, ffn, rank = arms[0]
    count = len(device)
    return equal_links(
        problem,
        device,
        prune_heads=np.full(count, heads),
        prune_ffn=np.full(count, ffn),
        rank=np.full(count, rank, np.int64),
    )


def _arrays(values: Values) -> dict[str, Floats | float]:
    return {"theta": values.theta, "precision": values.precision, "noise": values.noise}


def _values(state: State) -> Values:
    return Values(
        np.asarray(state["theta"]),
        np.asarray(state["precision"]),
        float(np.asarray(state["noise"])),
    )
