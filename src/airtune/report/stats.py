"""Statistics of a comparison: cost to a target, and paired intervals over seeds.

Rules. A quality series is smoothed by a trailing mean of `SMOOTHING` evaluations. A run reaches the
target at the first evaluation at which a full such mean meets it; a run that never does costs more
than it spent, "> T". Methods are compared seed by seed, since a seed fixes data, fleet and channel:
the interval is a percentile bootstrap of the mean over seeds, exact (every resample) for up to six
seeds. With few seeds such an interval is narrower than its nominal 95 %, which is why a result is
called a win from `SEEDS_FOR_CLAIM` seeds on only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from airtune.keys import generator
from airtune.plan import Floats

SMOOTHING = 3
"""Evaluations in the trailing mean."""
SEEDS_FOR_INTERVAL = 3
SEEDS_FOR_CLAIM = 5
_EXACT_SEEDS = 6
_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Reached:
    """What a run spent until the target (seconds, bytes, joules), or in all if it missed it."""

    value: float
    hit: bool


@dataclass(frozen=True, slots=True)
class Change:
    """A method against another, over paired seeds; negative is less.

    `bound` says what the number stands for: `equal` measured in every seed · `at_most` the other
    method missed the target in some seed, so the true change is at most this · `at_least` this
    method missed it · `unknown` a seed in which neither arrived, or misses on both sides.
    """

    mean: float
    low: float
    high: float
    pairs: int
    bound: Literal["equal", "at_most", "at_least", "unknown"] = "equal"

    @property
    def is_less(self) -> bool:
        """The interval lies wholly below zero."""
        return self.high < 0.0 and self.bound in ("equal", "at_most")

    @property
    def is_more(self) -> bool:
        """The interval lies wholly above zero."""
        return self.low > 0.0 and self.bound in ("equal", "at_least")

    @property
    def is_resolved(self) -> bool:
        """The interval excludes zero, on the side on which it is known."""
        return self.is_less or self.is_more

    @property
    def is_claim(self) -> bool:
        """The interval excludes zero and there are seeds enough to call it a result."""
        return self.is_resolved and self.pairs >= SEEDS_FOR_CLAIM


def smooth(values: Floats, window: int = SMOOTHING) -> Floats:
    """Return the trailing mean, shape (n,); the first values average what there is so far.

    >>> smooth(np.array([3.0, 1.0, 2.0, 6.0]), 2).tolist()
    [3.0, 2.0, 1.5, 4.0]
    """
    total = np.concatenate([[0.0], np.cumsum(values)])
    last = np.arange(1, values.shape[0] + 1)
    first = np.maximum(last - window, 0)
    return np.asarray((total[last] - total[first]) / (last - first))


def cost_to_target(
    spent: Floats, quality: Floats, target: float, *, higher: bool, total: float
) -> Reached:
    """Return what was spent when a full mean of the quality first met the target.

    Args:
        spent: cumulative cost at each evaluation, shape (n,).
        quality: smoothed quality at each evaluation, shape (n,).
        target: the quality to meet.
        higher: more is better.
        total: what the whole run spent; the value of a miss.

    >>> cost_to_target(np.array([1.0, 2.0, 3.0]), np.array([0.9, 0.7, 0.6]), 0.7, higher=False,
    ...                total=3.0)
    Reached(value=3.0, hit=True)
    """
    meets = quality >= target if higher else quality <= target
    meets[: SMOOTHING - 1] = False
    if not meets.any():
        return Reached(total, hit=False)
    return Reached(float(spent[int(np.argmax(meets))]), hit=True)


def relative_change(ours: Sequence[Reached], theirs: Sequence[Reached]) -> Change:
    """Return the relative change of a cost, `ours / theirs - 1`, as a geometric mean over seeds.

    A seed in which one method missed gives a bound instead of a value; see `Change.bound`.

    >>> relative_change([Reached(1.0, True)] * 3, [Reached(2.0, True)] * 3).mean
    -0.5
    """
    kinds = {_kind(mine, other) for mine, other in zip(ours, theirs, strict=True)}
    bounds = kinds - {"equal"}
    if not kinds or "unknown" in kinds or len(bounds) > 1:
        return Change(math.nan, math.nan, math.nan, len(ours), "unknown")
    ratios = np.array(
        [math.log(mine.value / other.value) for mine, other in zip(ours, theirs, strict=True)]
    )
    low, high = bootstrap(ratios)
    mean, low, high = (math.expm1(value) for value in (float(ratios.mean()), low, high))
    bound: Literal["equal", "at_most", "at_least"] = (
        "equal" if not bounds else "at_most" if "at_most" in bounds else "at_least"
    )
    return Change(mean, low, high, len(ours), bound)


def difference(ours: Floats, theirs: Floats) -> Change:
    """Return the mean of `ours - theirs` over paired seeds, with its interval."""
    gaps = ours - theirs
    if not gaps.size or not np.isfinite(gaps).all():
        return Change(math.nan, math.nan, math.nan, gaps.size, "unknown")
    low, high = bootstrap(gaps)
    return Change(float(gaps.mean()), low, high, gaps.size)


def bootstrap(values: Floats) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of `values`, shape (n,).

    NaN, NaN below `SEEDS_FOR_INTERVAL` values: a spread of two is no interval.

    >>> bootstrap(np.array([1.0, 1.0, 1.0]))
    (1.0, 1.0)
    """
    count = values.shape[0]
    if count < SEEDS_FOR_INTERVAL:
        return math.nan, math.nan
    if count <= _EXACT_SEEDS:
        draws = np.array(list(product(range(count), repeat=count)))
    else:
        draws = generator(0, "bootstrap").integers(count, size=(_RESAMPLES, count))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _kind(mine: Reached, other: Reached) -> Literal["equal", "at_most", "at_least", "unknown"]:
    if not (mine.value > 0.0 and other.value > 0.0):  # nothing was spent, or NaN
        return "unknown"
    if mine.hit and other.hit:
        return "equal"
    if mine.hit:
        return "at_most"
    return "at_least" if other.hit else "unknown"
