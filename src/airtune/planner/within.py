"""Plans asked backwards: how much of one thing makes a run end in time.

Each quantity is varied alone, everything else stays, and the method plans anew at every step. More
bandwidth, memory or server, fewer rounds or devices never make an optimal plan slower, so bisection
finds the least that meets; with a method that is not optimal, the answer is still a plan that was
made and meets, only perhaps not the least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from airtune.errors import InfeasibleError, RecipeError
from airtune.fleet.change import with_bandwidth, with_memory, with_server, without
from airtune.planner.sample import Sampled, sample
from airtune.planner.setting import PlanSetting
from airtune.planner.words import binding
from airtune.units import format_bytes, format_seconds

Vary = Literal["bandwidth", "memory", "server", "devices", "rounds"]
VARIED: tuple[Vary, ...] = get_args(Vary)

MOST_FACTOR = 64.0
"""The largest multiple that is tried, and the inverse of the smallest."""
_CLOSE = 1.02
"""Bisection ends when the factor that meets is so near to the one that does not."""
_SAME = 1e-9
"""Mean pruned fractions that differ by less are alike."""
_CANDIDATES = 3
"""Devices that finish last, and as many that hold most of their link, that are tried for removal."""
_DROPS = 50
"""Larger fleets lose several devices at a time, so that there are at most so many steps."""


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

    @property
    def meets(self) -> bool:
        """The plan as it is ends in time."""
        return self.total_s <= self.within_s

    def as_document(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "meets": self.meets}


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
    setting: PlanSetting, within_s: float, *, vary: Sequence[Vary] = VARIED,
    quantile: float | None = None,
) -> Within:  # fmt: skip
    """Return what would make a run end within a time.

    Args:
        setting: what is planned.
        within_s: seconds that the run may take.
        vary: the quantities that may change, each alone.
        quantile: of the rounds' times that every round is taken to have; None = their median.

    Raises:
        InfeasibleError: if none of them meets; the message says the least possible and what binds.
    """
    question = _Question(setting, within_s, quantile, *_start(setting, quantile))
    answers = tuple(_SEARCH[name](question) for name in vary)
    if not any(answer.meets for answer in answers):
        raise InfeasibleError(_nothing(question, answers))
    return Within(within_s, question.now.total_s, answers)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A plan as far as the question goes."""

    total_s: float
    able: int
    """Devices that train."""
    pruned: float
    """Mean over the devices of what is pruned."""
    binds: str


_NEVER = _Seen(math.inf, 0, 1.0, "memory")


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked, and the plan as it stands."""

    setting: PlanSetting
    within_s: float
    quantile: float | None
    now: _Seen
    sampled: Sampled

    def see(self, change: Callable[[], PlanSetting]) -> _Seen:
        """Return the plan of a changed setting; one that cannot be planned takes for ever."""
        try:
            setting = change()
            return _seen(setting, sample(setting, self.quantile), self.quantile)
        except InfeasibleError:
            return _NEVER

    def meets(self, seen: _Seen, *, everybody: bool = True) -> bool:
        """Say whether a plan ends in time, with all that train now, or at least somebody."""
        return seen.total_s <= self.within_s and seen.able >= (self.now.able if everybody else 1)


def _start(setting: PlanSetting, quantile: float | None) -> tuple[_Seen, Sampled]:
    sampled = sample(setting, quantile)
    return _seen(setting, sampled, quantile), sampled


def _seen(setting: PlanSetting, sampled: Sampled, quantile: float | None) -> _Seen:
    total_s = sampled.totals(setting.problem.rounds, quantile).total_s
    able = int(sampled.able.sum())
    trains = (able or setting.chosen.is_control) and not math.isnan(total_s)
    pruned = sampled.middle["pruned"]
    mean = float(np.mean(pruned[np.isfinite(pruned)])) if np.isfinite(pruned).any() else 0.0
    return _Seen(total_s if trains else math.inf, able, mean, binding(setting.fleet, sampled))


def _bandwidth(question: _Question) -> Requirement:
    fleet = question.setting.fleet
    answer = _by_factor(
        question, "bandwidth",
        lambda factor: question.setting.on(with_bandwidth(fleet, up=factor, down=factor)),
    )  # fmt: skip
    wide = {spec.name: spec.up_bandwidth_hz for spec in fleet.specs if spec.up_bandwidth_hz}
    shown = ", ".join(f"{name} {hz * answer.amount / 1e6:.3g} MHz up" for name, hz in wide.items())
    return _worded(answer, f" ({shown})" if 0 < len(wide) <= _CANDIDATES else " on every link")


def _memory(question: _Question) -> Requirement:
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


def _server(question: _Question) -> Requirement:
    fleet = question.setting.fleet
    answer = _by_factor(
        question, "server", lambda factor: question.setting.on(with_server(fleet, factor))
    )
    return _worded(answer, f" ({fleet.server.flops_per_s * answer.amount / 1e12:.3g} TFLOP/s)")


def _by_factor(
    question: _Question, vary: Vary, at: Callable[[float], PlanSetting],
    keeps: Callable[[_Seen], bool] = lambda seen: True,
) -> Requirement:  # fmt: skip
    """Return the least multiple that meets, between 1 and the end that is on the other side.

    Args:
        question: what is asked.
        vary: the quantity.
        at: the setting with a multiple of it.
        keeps: whether a plan gives up nothing that time does not show.
    """

    def meets(seen: _Seen) -> bool:
        return question.meets(seen) and keeps(seen)

    def see(factor: float) -> _Seen:
        return question.see(lambda: at(factor))

    is_met = meets(question.now)
    end = 1.0 / MOST_FACTOR if is_met else MOST_FACTOR
    best = see(end)
    if meets(best) == is_met:  # the other side is not reached
        return Requirement(vary, is_met, "", end, best.total_s, best.binds)
    low, high = (end, 1.0) if is_met else (1.0, end)
    best = question.now if is_met else best
    while high / low > _CLOSE:
        middle = math.sqrt(low * high)
        seen = see(middle)
        if meets(seen):
            high, best = middle, seen
        else:
            low = middle
    return Requirement(vary, True, "", high, best.total_s, best.binds)


def _worded(answer: Requirement, detail: str) -> Requirement:
    """Put the multiple in words, rounded up so that what is read meets too."""
    factor = math.ceil(answer.amount * 100) / 100
    lead = "not even " if not answer.meets else "no more than " if factor < 1.0 else ""
    amount = f"{factor:g} times" if factor != 1.0 else "what there is"
    return Requirement(answer.vary, answer.meets, f"{lead}{amount}{detail}", answer.amount,
                  answer.total_s, answer.binds)  # fmt: skip


def _rounds(question: _Question) -> Requirement:
    """Return the most rounds that fit."""
    setting = question.setting
    now = setting.problem.rounds

    def see(rounds: int) -> _Seen:
        return question.see(lambda: setting.for_rounds(rounds))

    is_met = question.meets(question.now)
    low, high = (now, int(now * MOST_FACTOR)) if is_met else (0, now)
    best, end = (question.now, see(high)) if is_met else (see(1), question.now)
    if not is_met and not question.meets(best):
        return Requirement("rounds", False, "not even 1 round", 1, best.total_s, best.binds)
    if is_met and question.meets(end):
        low, best = high, end
    while high - low > 1:
        middle = (low + high) // 2
        seen = see(middle)
        if question.meets(seen):
            low, best = middle, seen
        else:
            high = middle
    return Requirement("rounds", True, f"{low} of {now} rounds" if low <= now else f"{low} rounds would fit",
                  low, best.total_s, best.binds)  # fmt: skip


def _devices(question: _Question) -> Requirement:
    """Leave out device after device, each time the one without which the run is shortest."""
    setting, fleet = question.setting, question.setting.fleet
    out: list[int] = []
    seen, sampled = question.now, question.sampled
    together = max(1, len(fleet) // _DROPS)
    while not question.meets(seen, everybody=False):
        left = np.setdiff1d(np.flatnonzero(fleet.availability > 0.0), out)
        if left.size <= 1:
            break
        ranked = _candidates(sampled, left)
        tries = []
        for device in ranked[: 2 * _CANDIDATES]:
            others = [other for other in ranked if other != device]
            gone = [device, *others][: min(together, left.size - 1)]
            tries.append((question.see(partial(_less, setting, [*out, *gone])), gone))
        seen, gone = min(tries, key=lambda each: each[0].total_s)
        out += gone
        sampled = sample(_less(setting, out), question.quantile) if seen is not _NEVER else sampled
    kept = int(np.sum(fleet.availability > 0.0)) - len(out)
    names = tuple(fleet.names[index] for index in sorted(out))
    meets = question.meets(seen, everybody=False)
    words = f"{kept} of {len(fleet)} devices" if meets else "not even 1 device"
    return Requirement("devices", meets, words, kept, seen.total_s, seen.binds, names)


def _less(setting: PlanSetting, out: Sequence[int]) -> PlanSetting:
    return setting.on(without(setting.fleet, np.array(out, np.int64)))


def _candidates(sampled: Sampled, left: np.ndarray[Any, Any]) -> list[int]:
    """Return devices worth leaving out: in turns the slowest, and those with most of their link."""
    middle = sampled.middle
    orders = [
        left[np.argsort(-np.nan_to_num(middle[name][left]), kind="stable")].tolist()
        for name in ("finish_s", "share")
    ]
    return list(dict.fromkeys(device for pair in zip(*orders, strict=True) for device in pair))


_SEARCH: dict[Vary, Callable[[_Question], Requirement]] = {
    "bandwidth": _bandwidth, "memory": _memory, "server": _server, "devices": _devices,
    "rounds": _rounds,
}  # fmt: skip


def _nothing(question: _Question, answers: Sequence[Requirement]) -> str:
    """Say that nothing meets, what the least possible is, and what binds."""
    best = min(answers, key=lambda answer: answer.total_s)
    tried = "; ".join(
        f"{answer.vary}: {answer.needs}, which takes {format_seconds(answer.total_s)}"
        if math.isfinite(answer.total_s) else f"{answer.vary}: {answer.needs}, which has no plan"
        for answer in answers
    )  # fmt: skip
    now = question.now.total_s
    least = format_seconds(best.total_s) if math.isfinite(best.total_s) else "not known"
    return (
        f"nothing that may vary makes the run end within {format_seconds(question.within_s)}; as it "
        f"is, it takes {format_seconds(now) if math.isfinite(now) else 'for ever'}. The least "
        f"possible is {least}, by {best.vary}; what binds then is {best.binds}. Tried: {tried}. Allow more time, "
        "vary another quantity (--vary), or lower train.local_steps"
    )
