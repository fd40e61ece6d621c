"""auto: pruning, rank, cut, codec and share of each device chosen together, round by round.

Each round every available device takes one line of its menu, whole or cut, and a share of its link,
so that rounds needed times seconds a round is least. What lines cost in rounds is measured
beforehand; what was not measured is not chosen. The plans of `jcpba` and `sft` and the same line for
everybody are among the answers compared, so a plan is never slower than theirs by these costs.

Source: this project's; see `airtune.solve.mixed_problem`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from airtune.cost import Prediction, predict
from airtune.errors import InfeasibleError, MethodError, RecipeError
from airtune.methods.budget import Budget, check_budget
from airtune.methods.jcpba import Jcpba
from airtune.methods.margin import USUAL, expecting, no_reports, reported, times_longer
from airtune.methods.mixed_choice import Menus, MixedChoice, Start, choose
from airtune.methods.mixed_lines import Knob, MixedLines, fitting_lines, mixed_lines
from airtune.methods.mixed_notes import notes_of, prices_of_devices, solution_of
from airtune.methods.mixed_reasons import mixed_reasons
from airtune.methods.sampling import LEAST, asked, not_asked, probabilities, rarely
from airtune.methods.seen import Seen, see
from airtune.methods.sft import Sft, first_plan
from airtune.methods.slot import keep_or_divide
from airtune.plan import (
    AggregateSpec,
    Assignments,
    Bools,
    Floats,
    Ints,
    LinkState,
    Method,
    Need,
    Observation,
    Problem,
    Results,
    RoundPlan,
    State,
    Want,
    WorkSpec,
)
from airtune.solve import Curves, MixedSolution, slowed

_SFT_TOLERANCE = 0.01
"""Gap at which the search for the plan of `sft` stops."""

_MOST_QUANTILE = 0.99

Quality = Literal["auto"] | Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Auto:
    """The decider of auto; its fields are the method's settings.

    Raises:
        RecipeError: if a setting is outside its range.
    """

    knobs: Sequence[Knob] = ("prune", "rank", "upload", "cut", "codec", "share", "steps")
    """What is chosen for each device. A knob that is left out keeps its plain value: dense, whole,
    full rank, no codec (updates: the recipe's `upload`), equal shares of a link."""
    quality: Quality = "auto"
    """auto = minimise rounds times seconds a round; {rounds: 1.1} = the same, with at most 1.1 times
    the rounds of dense, whole training."""
    ranks: Sequence[int] = ()
    """Ranks to choose from; () = lora.r and its half, quarter and eighth."""
    max_prune: Budget = "auto"
    """Largest pruning rate of a device; auto = as measured by the calibration; memory may force
    more."""
    labels: Literal["travel", "stay"] = "travel"
    """Labels of cut devices: travel to the server, or stay, with head and loss on the device."""
    hysteresis: float = 0.03
    """Choices of the last round are kept while new ones would save less than this part."""
    quantile: float = USUAL
    """Part of the rounds that should end as planned, from 0.5 to 0.99: devices that are often late are
    planned with more time. 0.5 = plan with the declared speeds."""
    sampling_rate: float = 1.0
    """Average part of the devices asked in a round: slow devices are asked less often, and each update
    is weighted by one over its probability. 1 = all are asked."""
    needs: frozenset[Need] = frozenset({"capability", "channel"})

    def __post_init__(self) -> None:
        known = get_args(Knob)
        if (
            not isinstance(self.knobs, list | tuple)
            or not self.knobs
            or set(self.knobs) - set(known)
        ):
            raise RecipeError(
                f"knobs must be a list of some of {', '.join(known)}, got {self.knobs!r}"
            )
        if not isinstance(self.ranks, list | tuple) or not all(
            isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
            for rank in self.ranks
        ):
            raise RecipeError(
                f"ranks must be a list of whole numbers from 1 on, got {self.ranks!r}"
            )
        if self.labels not in ("travel", "stay"):
            raise RecipeError(f"labels must be travel or stay, got {self.labels!r}")
        if not 0.0 <= self.hysteresis < 1.0:
            raise RecipeError(f"hysteresis must be in [0, 1), got {self.hysteresis:g}")
        if not USUAL <= self.quantile <= _MOST_QUANTILE:
            raise RecipeError(
                f"quantile must be from {USUAL:g} to {_MOST_QUANTILE:g}, got {self.quantile:g}"
            )
        if not LEAST <= self.sampling_rate <= 1.0:
            raise RecipeError(
                f"sampling_rate must be from {LEAST:g} to 1, got {self.sampling_rate:g}"
            )
        check_budget("auto", 0.0, self.max_prune)
        _ = self.most_rounds

    @property
    def most_rounds(self) -> float:
        """Most rounds relative to dense, whole training; inf = no limit.

        Raises:
            RecipeError: if `quality` is neither auto nor {rounds: a number from 1 on}.
        """
        if self.quality == "auto":
            return float("inf")
        asked = dict(self.quality) if isinstance(self.quality, Mapping) else {}
        most = asked.pop("rounds", 0.0)
        if asked or isinstance(most, bool) or not isinstance(most, int | float) or not most >= 1.0:
            raise RecipeError(
                "quality must be auto or {rounds: a number from 1 on}, for instance {rounds: 1.1} "
                f"for at most 1.1 times the rounds, got {self.quality!r}"
            )
        return float(most)

    def init(self, problem: Problem) -> State:
        """Return a state in which no device has a line."""
        count = len(problem.devices)
        reports = no_reports(count, self.quantile) if self.quantile > USUAL else {}
        prices = {"price": np.full(count, np.nan)} if self.sampling_rate < 1.0 else {}
        return {"line": np.full(count, -1, np.int64), **reports, **prices}

    def plan(
        self, problem: Problem, state: State, observation: Observation
    ) -> tuple[RoundPlan, State]:
        """Choose a line and a share for every available device.

        Raises:
            InfeasibleError: if a device's memory fits no line, the server's no choice of cuts, or no
                choice keeps to the rounds allowed.
        """
        there = observation.available
        if self.sampling_rate < 1.0:
            probability = self._probability(problem, state, there)
            is_asked = asked(problem, observation.round, there, probability)
            observation = replace(observation, available=is_asked)
        seen = see(problem, observation)
        longer = (
            times_longer(state, seen.device) if self.quantile > USUAL else np.ones(len(seen.device))
        )
        seen = replace(seen, flops_per_s=seen.flops_per_s / longer)
        lines = mixed_lines(problem, self.knobs, ranks=self.ranks)
        last = np.array(state["line"], np.int64)
        allowed = _rising(
            fitting_lines(problem, seen, lines, self.max_prune), lines, last[seen.device]
        )
        index, share = _usual(lines, allowed, last[seen.device]), np.zeros(0)
        out = np.setdiff1d(np.arange(index.size), seen.able)
        menus = Menus(
            problem,
            observation,
            seen,
            lines,
            allowed[seen.able],
            slowed(self._curves(seen), seen.of(longer)),
            longer,
            float(np.log(self.most_rounds)),
            float(np.sum(lines.server_bytes[index[out]])),
        )
        found = None
        if seen.able.size:
            held = _held(menus.allowed, last[seen.device[seen.able]])
            found = choose(menus, list(self._starts(menus)), held, self.hysteresis)
            index[seen.able], share = found[0].index, found[0].share
        last[seen.device] = index
        assignments = lines.assignments(problem, seen.device, index, seen.shares(share))
        expected = predict(
            problem, assignments, links=seen.links, flops_per_s=menus.declared_flops_per_s
        )
        plan = _round_plan(menus, assignments, index, expected, found)
        after: State = {**state, "line": last}
        if self.quantile > USUAL:
            after = expecting(after, seen.device, expected.finish_s, plan.predicted_s)
        if self.sampling_rate < 1.0:
            plan = _sampled(problem, plan, np.flatnonzero(there), probability, state)
            price = np.array(state["price"])
            if found is not None:
                price[seen.device[seen.able]] = prices_of_devices(menus, *found)
            after = {**after, "price": price}
        return plan, after

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
        """Learn how late devices are, where plans are to hold in most rounds; else nothing."""
        return reported(state, results, self.quantile) if self.quantile > USUAL else state

    def _probability(self, problem: Problem, state: State, there: Bools) -> Floats:
        """Return the probability with which each device is asked, shape (devices,); 1 if not there."""
        found = np.ones(there.size)
        found[there] = probabilities(
            problem.devices.weight[there], np.asarray(state["price"])[there], self.sampling_rate
        )
        return found

    def _curves(self, seen: Seen) -> Curves:
        """Return the uplinks, each with an equal share to itself where shares are not chosen."""
        curves = seen.curves
        if "share" in self.knobs:
            return curves
        return replace(
            curves,
            link=np.arange(len(curves)),
            budget=np.where(curves.dedicated, 1.0, curves.equal_shares()),
        )

    def _starts(self, menus: Menus) -> Iterator[Start]:
        """Yield the plans of the methods whose knobs may all be chosen, where they have one."""
        knobs, problem, seen = set(self.knobs), menus.problem, menus.seen
        plans: dict[str, Callable[[], Assignments]] = {}
        if knobs >= {"prune", "share"}:
            pruner = Jcpba(max_prune=self.max_prune)
            plans["jcpba"] = lambda: pruner.plan(problem, {}, menus.observation)[
                0
            ].assignments.take(seen.able)
        if knobs >= {"cut", "codec", "share"}:
            plans["sft"] = lambda: first_plan(
                Sft(labels=self.labels), problem, seen, tolerance=_SFT_TOLERANCE
            )
        for name, plan in plans.items():
            try:
                assignments = plan()
            except InfeasibleError:
                continue
            index = menus.lines.find(assignments)
            if (index >= 0).all() and menus.allowed[np.arange(index.size), index].all():
                yield Start(f"the plan of {name}", index, assignments.share)


def _kept(allowed: Bools, line: Ints) -> Bools:
    """Return which devices have a line that they may still have, shape (n,)."""
    there = (line >= 0) & (line < allowed.shape[1])
    return np.asarray(there & allowed[np.arange(line.size), np.where(there, line, 0)], np.bool_)


def _held(allowed: Bools, line: Ints) -> Start | None:
    """Return the last round's lines, where all able devices may keep theirs."""
    return Start("kept from the last round", line) if _kept(allowed, line).all() else None


def _rising(allowed: Bools, lines: MixedLines, line: Ints) -> Bools:
    """Return the lines of no lower rank than each device's last one, where it fits one, (n, lines).

    A lower rank trains the first part of the adapters as if the rest were not there, but the model
    that counts has the rest: once it is trained, leaving it out spoils the rounds that follow.
    """
    before = np.where(line >= 0, lines.rank[np.maximum(line, 0)], 0)
    kept = allowed & (lines.rank >= before[:, None])
    return np.where(kept.any(axis=1, keepdims=True), kept, allowed)


def _usual(lines: MixedLines, allowed: Bools, line: Ints) -> Ints:
    """Return each device's last line while it fits, or the one that asks least of the server."""
    light = np.argmin(np.where(allowed, lines.server_bytes, np.inf), axis=1)
    return np.asarray(np.where(_kept(allowed, line), line, light), np.int64)


def _round_plan(
    menus: Menus,
    assignments: Assignments,
    index: Ints,
    expected: Prediction,
    found: tuple[MixedChoice, MixedSolution] | None,
) -> RoundPlan:
    finish_s = expected.finish_s * menus.longer
    reachable = finish_s[np.isfinite(finish_s)]
    return RoundPlan(
        round=menus.observation.round,
        assignments=assignments,
        reasons=mixed_reasons(menus, assignments, index, expected, found[0] if found else None),
        predicted_s=float(np.max(reachable)) if reachable.size else float("nan"),
        deadline_s=menus.problem.deadline_s,
        solution=solution_of(*found) if found else None,
        notes=notes_of(menus, *found) if found else {},
    )


def _sampled(
    problem: Problem, plan: RoundPlan, there: Ints, probability: Floats, state: State
) -> RoundPlan:
    """Return a plan that says with which probability each device was asked, and why who is not."""
    assignments, price = plan.assignments, np.asarray(state["price"])
    reasons = tuple(
        reason
        if probability[device] == 1.0
        else f"{reason}; {rarely(probability[device], price[device])}"
        for device, reason in zip(assignments.device.tolist(), plan.reasons, strict=True)
    )
    left = np.setdiff1d(there, assignments.device)
    return replace(
        plan,
        reasons=reasons,
        assignments=replace(assignments, probability=probability[assignments.device]),
        not_asked=not_asked(problem, left, probability, price),
    )


def auto(name: str, settings: object) -> Method:
    """Return the method of these settings with the local work they ask for."""
    if not isinstance(settings, Auto):
        raise MethodError(f"settings must be Auto, got {type(settings).__name__}")
    knobs = set(settings.knobs)
    wants: set[Want] = set()
    if "prune" in knobs:
        wants |= {"sensitivity", "pruning"}
    if knobs >= {"cut", "codec"}:
        wants |= {"codecs"}
    if "cut" in knobs:
        wants |= {"cut"}
    if "rank" in knobs:
        wants |= {"ranks"}
    if "upload" in knobs:
        wants |= {"uploads"}
    if "steps" in knobs:
        wants |= {"steps"}
    rule = AggregateSpec("nested" if "rank" in knobs else "average")
    return Method(
        name,
        settings,
        rule,
        WorkSpec(labels=settings.labels),
        wants=frozenset(wants),
        may_cut="cut" in knobs,
        may_sample=settings.sampling_rate < 1.0,
        ranks={"ranks": max(settings.ranks, default=1)},
    )
