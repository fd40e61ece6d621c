"""A setting with one quantity changed: its plan, and the search for the amount that meets a time.

A changed setting is planned in the few rounds that end next to the median, or to the quantile asked
for, with the same links and speeds. So two plans differ by what was changed alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from airtune.errors import InfeasibleError
from airtune.planner.sample import Draws, Sampled, sample
from airtune.planner.setting import PlanSetting
from airtune.planner.words import binding

_SAME = 1e-9


@dataclass(frozen=True, slots=True)
class SeenPlan:
    """A plan as far as the question goes."""

    total_s: float
    able: int
    """Devices that train."""
    pruned: float
    """Mean over the devices of what is pruned."""
    binds: str


Tried = tuple[float, SeenPlan]
"""An amount and its plan."""
NEVER = SeenPlan(math.inf, 0, 1.0, "memory")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and the plan as it stands."""

    setting: PlanSetting
    within_s: float
    draws: Draws
    """Of links and speeds, by which changed plans are compared."""
    now: SeenPlan
    sampled: Sampled

    def see(self, change: Callable[[], PlanSetting]) -> SeenPlan:
        """Return the plan of a changed setting; one that cannot be planned takes for ever."""
        try:
            setting = change()
            return seen_plan(setting, sample(setting, self.draws))
        except InfeasibleError:
            return NEVER

    def meets(self, seen: SeenPlan, *, everybody: bool = True) -> bool:
        """Say whether a plan ends in time, with all that train now, or at least somebody."""
        return seen.total_s <= self.within_s and seen.able >= (self.now.able if everybody else 1)


def seen_plan(setting: PlanSetting, sampled: Sampled) -> SeenPlan:
    """Return what a planned setting says."""
    total_s = sampled.totals(setting.problem.rounds).total_s
    able = int(sampled.able.sum())
    trains = (able or setting.chosen.is_control) and not math.isnan(total_s)
    pruned = sampled.middle["pruned"]
    mean = float(np.mean(pruned[np.isfinite(pruned)])) if np.isfinite(pruned).any() else 0.0
    return SeenPlan(total_s if trains else math.inf, able, mean, binding(setting.fleet, sampled))


def closed_in(
    within_s: float,
    short: Tried,
    enough: Tried,
    see: Callable[[float], SeenPlan],
    meets: Callable[[SeenPlan], bool],
    *,
    close: float,
    snap: Callable[[float], float] = float,
) -> Tried:
    """Return the amount nearest to one that does not meet, and its plan, within a ratio.

    Where time goes as a power of the amount, two plans close in on it. A guess that leaves most of
    the range is followed by its half.

    Args:
        within_s: the time to meet.
        short: an amount that does not meet, and its plan.
        enough: one that does.
        see: the plan of an amount.
        meets: whether a plan meets.
        close: ratio of the two at which the search ends.
        snap: to an amount that there may be.
    """
    is_guessed = True
    while abs(math.log(enough[0] / short[0])) > math.log(close) * (1.0 + _SAME):
        part = _guess(within_s, short, enough, close) if is_guessed else 0.5
        amount = snap(short[0] * (enough[0] / short[0]) ** part)
        if amount in (short[0], enough[0]):
            amount = snap(math.sqrt(short[0] * enough[0]))
        if amount in (short[0], enough[0]):
            break
        seen = see(amount)
        is_guessed = not is_guessed or meets(seen) == (part < 0.5)
        if meets(seen):
            enough = amount, seen
        else:
            short = amount, seen
    return enough


def _guess(within_s: float, short: Tried, enough: Tried, close: float) -> float:
    """Return how far from `short` to `enough`, in logarithms, a power of the amount meets the time.

    It is half of what is close beyond that, so that the next guess is on the other side of it.
    """
    step = min(0.5 * math.log(close) / abs(math.log(enough[0] / short[0])), 0.5)
    over, under = (math.log(max(seen.total_s, 1e-9) / within_s) for _, seen in (short, enough))
    part = over / (over - under) if over > 0.0 and math.isfinite(over) else 0.5
    return min(max(part + (step if part < 0.5 else -step), step), 1.0 - step)


def dearest(question: Question) -> list[int]:
    """Return the devices by the share of their link that each would need to end in time, most first.

    A rate is taken to grow with the share; who would need more time than there is without sending
    comes first, the latest of them before others.
    """
    middle = {name: np.nan_to_num(column) for name, column in question.sampled.middle.items()}
    limit_s = question.within_s / question.setting.problem.rounds
    left_s = limit_s - (middle["finish_s"] - middle["upload_s"])
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = np.where(left_s > 0.0, middle["share"] * middle["upload_s"] / left_s, np.inf)
    order = np.lexsort((-middle["finish_s"], -needed))
    there = question.setting.fleet.availability > 0.0
    return [int(device) for device in order if there[device]]
