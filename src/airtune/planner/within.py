"""Plans asked backwards: how much of one quantity makes a run end in time.

Each quantity is varied alone, everything else stays, and the method plans anew at every step. More
bandwidth, memory or server, fewer rounds or devices never make an optimal plan slower, so closing in
on a time finds the least that meets; with a method that is not optimal, the answer is still a plan that was
made and meets, only perhaps not the least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from airtune.errors import RecipeError
from airtune.fleet.change import with_bandwidth, with_memory, with_server, without
from airtune.planner.changed import Question, SeenPlan, closed_in, dearest, seen_plan
from airtune.planner.sample import Sampled, draws_of, sample
from airtune.planner.setting import PlanSetting
from airtune.units import format_bytes, format_number, format_seconds

Vary = Literal["bandwidth", "memory", "server", "devices", "rounds"]
VARIED: tuple[Vary, ...] = get_args(Vary)

MOST_FACTOR = 64.0
"""The largest multiple that is tried, and the inverse of the smallest."""
_CLOSE = 1.02
"""Bisection ends when the factor that meets is so near to the one that does not."""
_SAME = 1e-9
"""Mean pruned fractions that differ by less are alike."""
_NAMED_LINKS = 3
"""Links whose bandwidth is put in words; of more, none."""
_GIVEN_BACK = 6
"""Devices left out of which is tried whether they may stay after all."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """What one quantity has to be for the run to end in time, all else as it is."""

    vary: Vary
    meets: bool
    needs: str
    """In words; where nothing meets, what the most that was tried is."""
    amount: float
    """Multiple of what there is; of devices and rounds their number."""
    total_s: float
    """Of the plan with that amount."""
    binds: str
    """Who finishes last in it most often, and the longest part of its round."""
    left_out: tuple[str, ...] = ()
    """Names of the devices that do not take part."""


@dataclass(frozen=True, slots=True)
class Within:
    """Whether a run ends in time, and what it would take, or what could be spared."""

    within_s: float
    total_s: float
    """Of the plan as the recipe has it."""
    answers: tuple[Requirement, ...]
    quantile: float | None = None
    """Of the rounds' times that every round is taken to have; None = their median."""

    @property
    def verdict(self) -> str:
        """Whether the run ends in time, in a sentence without its first capital."""
        took = format_seconds(self.total_s) if math.isfinite(self.total_s) else "forever"
        every = (
            "the run takes"
            if self.quantile is None
            else f"with every round at the {self.quantile:.0%} quantile of round time, the run "
            "takes"
        )
        inside = "within" if self.meets else "not within"
        return f"{every} {took}, {inside} {format_seconds(self.within_s)}"

    @property
    def meets(self) -> bool:
        """The plan as it is ends in time."""
        return self.total_s <= self.within_s

    @property
    def shortfall(self) -> str:
        """The least possible and what binds, where no quantity alone makes the run end in time; else ""."""
        if any(answer.meets for answer in self.answers):
            return ""
        best = min(self.answers, key=lambda answer: answer.total_s)
        tried = "; ".join(
            f"{answer.vary}: {answer.needs}, which {_takes(answer.total_s, none='has no plan')}"
            for answer in self.answers
        )
        least = format_seconds(best.total_s) if math.isfinite(best.total_s) else "not known"
        return (
            f"no single change makes the run end within {format_seconds(self.within_s)}; as planned, "
            f"it {_takes(self.total_s, none='never ends')}. The shortest time is {least}, by changing "
            f"{best.vary}; the bottleneck is then {best.binds}. Tried: {tried}. Allow more time, vary "
            "another quantity (--vary), or lower train.local_steps"
        )

    def as_document(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "meets": self.meets}


def _takes(total_s: float, *, none: str) -> str:
    return f"takes {format_seconds(total_s)}" if math.isfinite(total_s) else none


def read_vary(text: str | None) -> tuple[Vary, ...]:
    """Read quantities with commas; None = all of them.

    Raises:
        RecipeError: if there is none of such a name.

    >>> read_vary("rounds, memory")
    ('memory', 'rounds')
    """
    asked = VARIED if text is None else tuple(part.strip() for part in text.split(","))
    for name in asked:
        if name not in VARIED:
            raise RecipeError(f"--vary must be among {', '.join(VARIED)}, got {name!r}")
    return tuple(name for name in VARIED if name in asked)


def plan_within(
    setting: PlanSetting,
    within_s: float,
    *,
    vary: Sequence[Vary] = VARIED,
    quantile: float | None = None,
    sampled: Sampled | None = None,
) -> Within:
    """Return what would make a run end within a time.

    Args:
        setting: what is planned.
        within_s: seconds that the run may take.
        vary: the quantities that may change, each alone.
        quantile: of the rounds' times that every round is taken to have; None = their median.
        sampled: the setting's rounds at the draws of this quantile; None = plan them.

    Returns:
        An answer for each quantity, whether it meets or not; `shortfall` says so where none does.

    Raises:
        InfeasibleError: if the setting itself has no plan.
    """
    rounds = setting.problem.rounds
    if sampled is None:
        sampled = sample(setting, draws_of(rounds, quantile))
    draws = sampled.typical(quantile)
    few = sample(setting, draws)
    now = replace(seen_plan(setting, few), total_s=sampled.totals(rounds, quantile).total_s)
    question = Question(setting, within_s, draws, now, few)
    answers = tuple(_SEARCH[name](question) for name in vary)
    return Within(within_s, question.now.total_s, answers, quantile)


def _bandwidth(question: Question) -> Requirement:
    fleet = question.setting.fleet
    answer = _by_factor(
        question,
        "bandwidth",
        lambda factor: question.setting.on(with_bandwidth(fleet, up=factor, down=factor)),
    )
    wide = {spec.name: spec.up_bandwidth_hz for spec in fleet.specs if spec.up_bandwidth_hz}
    shown = ", ".join(
        f"{name} {format_number(hz * answer.amount / 1e6)} MHz up" for name, hz in wide.items()
    )
    return _worded(answer, f" ({shown})" if 0 < len(wide) <= _NAMED_LINKS else " on every link")


def _memory(question: Question) -> Requirement:
    fleet = question.setting.fleet
    pruned = question.now.pruned

    def at(factor: float) -> PlanSetting:
        return question.setting.on(with_memory(fleet, factor=factor))

    # what less memory forces devices to prune is not spared: it costs quality
    answer = _by_factor(question, "memory", at, lambda seen: seen.pruned <= pruned + _SAME)
    ends = (
        float(end) * answer.amount for end in (fleet.memory_bytes.min(), fleet.memory_bytes.max())
    )
    return _worded(answer, f" ({' to '.join(dict.fromkeys(map(format_bytes, ends)))} a device)")


def _server(question: Question) -> Requirement:
    fleet = question.setting.fleet
    answer = _by_factor(
        question, "server", lambda factor: question.setting.on(with_server(fleet, factor))
    )
    return _worded(
        answer, f" ({format_number(fleet.server.flops_per_s * answer.amount / 1e12)} TFLOP/s)"
    )


def _by_factor(
    question: Question,
    vary: Vary,
    at: Callable[[float], PlanSetting],
    keeps: Callable[[SeenPlan], bool] = lambda seen: True,
) -> Requirement:
    """Return the least multiple that meets, between 1 and the end that is on the other side.

    Args:
        question: what is asked.
        vary: the quantity.
        at: the setting with a multiple of it.
        keeps: whether a plan gives up nothing that time does not show.
    """

    def meets(seen: SeenPlan) -> bool:
        return question.meets(seen) and keeps(seen)

    def see(factor: float) -> SeenPlan:
        return question.see(lambda: at(factor))

    is_met = meets(question.now)
    end = 1.0 / MOST_FACTOR if is_met else MOST_FACTOR
    best = see(end)
    if meets(best) == is_met:  # the other side is not reached
        return Requirement(vary, is_met, "", end, best.total_s, best.binds)
    ends = (1.0, question.now), (end, best)
    short, enough = ends[::-1] if is_met else ends
    factor, best = closed_in(question.within_s, short, enough, see, meets, close=_CLOSE)
    return Requirement(vary, True, "", factor, best.total_s, best.binds)


def _worded(answer: Requirement, detail: str) -> Requirement:
    """Put the multiple in words, rounded up so that what is read meets too."""
    factor = math.ceil(answer.amount * 100) / 100
    lead = "not even " if not answer.meets else "no more than " if factor < 1.0 else ""
    amount = f"{factor:g} times" if factor != 1.0 else "the current amount"
    return Requirement(
        answer.vary,
        answer.meets,
        f"{lead}{amount}{detail}",
        answer.amount,
        answer.total_s,
        answer.binds,
    )


def _rounds(question: Question) -> Requirement:
    """Return the most rounds that fit."""
    setting = question.setting
    now = setting.problem.rounds

    def see(rounds: int) -> SeenPlan:
        return question.see(lambda: setting.for_rounds(rounds))

    most = int(now * MOST_FACTOR)
    is_met = question.meets(question.now)
    other = (most, see(most)) if is_met else (1, see(1))
    if question.meets(other[1]) == is_met:  # the other side is not reached
        amount, best = other
        words = f"{amount} rounds would fit" if is_met else "not even 1 round"
        return Requirement("rounds", is_met, words, amount, best.total_s, best.binds)
    short, enough = (other, (now, question.now)) if is_met else ((now, question.now), other)
    found, best = closed_in(
        question.within_s,
        short,
        enough,
        lambda rounds: see(int(rounds)),
        question.meets,
        close=1.0 + 0.5 / most,
        snap=round,
    )
    low = int(found)
    return Requirement(
        "rounds",
        True,
        f"{low} of {now} rounds" if low <= now else f"{low} rounds would fit",
        low,
        best.total_s,
        best.binds,
    )


def _devices(question: Question) -> Requirement:
    """Leave out devices, first who would need most of its link to end in time; give back who may stay."""
    setting, fleet = question.setting, question.setting.fleet
    order = dearest(question)

    def see(out: Sequence[int]) -> SeenPlan:
        if not out:
            return question.now
        return question.see(lambda: setting.on(without(fleet, np.array(out, np.int64))))

    def meets(seen: SeenPlan) -> bool:
        return question.meets(seen, everybody=False)

    tried = {0: question.now}
    few, many = 0, len(order) - 1
    while few < many:  # the least number that meets, or all but one
        middle = (few + many) // 2
        tried[middle] = see(order[:middle])
        few, many = (few, middle) if meets(tried[middle]) else (middle + 1, many)
    seen = tried.get(few) or see(order[:few])
    out = list(order[:few])
    for device in out[:-1][::-1][:_GIVEN_BACK] if meets(seen) else ():
        without_it = see([other for other in out if other != device])
        if meets(without_it):
            out.remove(device)
            seen = without_it
    kept = len(order) - len(out)
    names = tuple(fleet.names[index] for index in sorted(out))
    words = f"{kept} of {len(fleet)} devices" if meets(seen) else "not even 1 device"
    return Requirement("devices", meets(seen), words, kept, seen.total_s, seen.binds, names)


_SEARCH: dict[Vary, Callable[[Question], Requirement]] = {
    "bandwidth": _bandwidth, "memory": _memory, "server": _server, "devices": _devices,
    "rounds": _rounds,
}  # fmt: skip
