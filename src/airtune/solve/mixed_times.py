"""The least time of a mixed round for chosen lines, and the shares that reach it.

For a finish time T and a send phase A every device needs a known share of its link; the load of the
fullest link is convex in both. The least T is where the least load over A is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from airtune.plan import Bools, Floats, Ints
from airtune.solve.mixed_problem import MixedProblem
from airtune.solve.rates import Curves

_ENDLESS_BPS = 1e200
_POINTS = 9
"""Values of A looked at together; the two beside the best bound the next ones."""
_ZOOMS = 12
_FIRST_ZOOMS = 2
"""Of a look that only decides whether a choice may be better."""
_NARROW = 1e-6
"""Of ln A, at least; a rougher search for T asks for no more than its own tolerance."""
_LONGEST_S = 1e15


@dataclass(frozen=True, slots=True)
class RoundTimes:
    """The least time of a round for chosen lines, and the shares that reach it."""

    round_s: float
    send_s: float
    """A; 0 where nobody is cut."""
    first_s: float
    """X; 0 where nobody is cut."""
    share: Floats


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The columns of chosen lines, shape (n,), and the sums that shares do not change."""

    curves: Curves
    whole: Bools
    fixed_s: Floats
    bits: Floats
    first_fixed_s: Floats
    """Of the first step: everything but sending."""
    first_bits: Floats
    later: int
    """Steps after the first."""
    rest_s: float
    """`(n - 1) B + n S`: what the cut part takes beside X and (n - 1) A."""

    def shares(self, round_s: float, send_s: Floats) -> Floats:
        """Return the shares that T and each of m values of A ask for, shape (m, n)."""
        first_s = round_s - self.rest_s - self.later * send_s[:, None]
        end = np.where(self.whole, round_s, send_s[:, None] if self.later else np.inf)
        rate = _pace(self.bits, end - self.fixed_s)
        begun = np.where(self.whole, 0.0, _pace(self.first_bits, first_s - self.first_fixed_s))
        rate = np.maximum(rate, begun)
        flat = self.curves.take(np.tile(np.arange(len(self.curves)), send_s.size))
        return flat.share_for(rate.ravel()).reshape(rate.shape)

    def loads(self, share: Floats) -> Floats:
        """Return the load of the fullest link over its budget, shape (m,)."""
        alone = self.curves.dedicated
        counted = np.where(alone, 0.0, share)
        each = np.stack(
            [
                counted[:, self.curves.link == link].sum(axis=1) / budget
                for link, budget in enumerate(self.curves.budget)
            ]
        )
        most = np.where(alone, share, 0.0).max(axis=1, initial=0.0)
        return np.asarray(np.maximum(each.max(axis=0), most), np.float64)

    def least_load(
        self, round_s: float, zooms: int = _ZOOMS, narrow: float = _NARROW
    ) -> tuple[float, float]:
        """Return (load, A): the A of the least load for a finish time T, within so much of ln A."""
        cut = ~self.whole
        if not cut.any() or not self.later:
            return float(self.loads(self.shares(round_s, np.zeros(1)))[0]), 0.0
        top = self.curves.rate(self.curves.most())[cut]
        low = float(np.max(self.fixed_s[cut] + self.bits[cut] / top))
        first_s = float(np.max(self.first_fixed_s[cut] + self.first_bits[cut] / top))
        high = (round_s - self.rest_s - first_s) / self.later
        if high <= low:
            return float(self.loads(self.shares(round_s, np.array([low])))[0]), low
        for _ in range(zooms):
            points = np.linspace(low, high, _POINTS)
            loads = self.loads(self.shares(round_s, points))
            at = int(np.argmin(loads))
            best = float(loads[at]), float(points[at])
            low, high = points[max(at - 1, 0)], points[min(at + 1, _POINTS - 1)]
            if high - low < narrow * high:
                break
        return best


def round_times(
    problem: MixedProblem, index: Ints, *, most_s: float = np.inf, tolerance: float = 1e-9
) -> RoundTimes:
    """Return the least round time of chosen lines, by a search for T and, within it, for A.

    Args:
        problem: the menus.
        index: the chosen lines, shape (n,).
        most_s: a time that decides the matter: a choice that needs more is not looked at further.
        tolerance: of ln T.

    Returns:
        The times; `round_s` is inf where the choice needs more than `most_s`.
    """
    chosen = _chosen(problem, index)
    low, late = _least_s(chosen), RoundTimes(np.inf, 0.0, 0.0, np.zeros(len(problem)))
    if not low <= most_s or not np.isfinite(low):
        return late
    high = most_s
    if np.isfinite(most_s):
        if chosen.least_load(most_s, _FIRST_ZOOMS)[0] > 1.0:
            return late
    else:
        high = low * 1.5
        while high < _LONGEST_S and chosen.least_load(high, _FIRST_ZOOMS)[0] > 1.0:
            low, high = high, high * 2.0
    narrow = max(_NARROW, tolerance)

    @cache
    def over(log_s: float) -> float:
        value = chosen.least_load(float(np.exp(log_s)), narrow=narrow)[0]
        return float(np.clip(np.log(value), -1e3, 1e3)) if value > 0.0 else -1e3

    ends = float(np.log(low)), float(np.log(high))
    if over(ends[1]) > 0.0:
        return late
    if over(ends[0]) > 0.0:
        from scipy.optimize import brentq

        root = brentq(over, *ends, xtol=tolerance, rtol=1e-14)
        high = min(float(np.exp(root + 2.0 * tolerance)), high)
    else:
        high = low
    _, send_s = chosen.least_load(high, narrow=narrow)
    share = _filled(chosen.curves, chosen.shares(high, np.array([send_s]))[0])
    first_s = high - chosen.rest_s - chosen.later * send_s
    is_cut = bool((~chosen.whole).any())
    return RoundTimes(high, send_s if is_cut else 0.0, first_s if is_cut else 0.0, share)


def _filled(curves: Curves, share: Floats) -> Floats:
    """Return shares in proportion that use all of every link; 1 where it is dedicated."""
    spare = curves.budget / np.maximum(curves.load(share), 1e-300)
    return np.where(curves.dedicated, 1.0, share * spare[curves.link])


def _pace(bits: Floats, left_s: Floats) -> Floats:
    """Return bits a second; more than any link carries where no time is left."""
    return np.where(left_s > 0.0, bits / np.where(left_s > 0.0, left_s, 1.0), _ENDLESS_BPS)


def _chosen(problem: MixedProblem, index: Ints) -> _Chosen:
    whole = problem.whole[index]
    fixed_s, bits = problem.of(problem.fixed_s, index), problem.of(problem.bits, index)
    back_s, down_s = problem.of(problem.backward_s, index), problem.of(problem.down_s, index)
    later = problem.steps - 1
    shared = problem.curves.load(np.where(whole, 0.0, down_s))[problem.curves.link]
    back = back_s + np.where(problem.curves.dedicated, down_s, shared)
    longest = float(np.max(np.where(whole, 0.0, back), initial=0.0))
    served = float(np.sum(problem.of(problem.server_s, index)))
    return _Chosen(
        curves=problem.curves,
        whole=whole,
        fixed_s=fixed_s,
        bits=bits,
        first_fixed_s=problem.of(problem.fetch_s, index) + fixed_s + back_s + down_s,
        first_bits=bits + problem.of(problem.adapter_bits, index),
        later=later,
        rest_s=later * longest + problem.steps * served,
    )


def _least_s(chosen: _Chosen) -> float:
    """Return a time below which no division lets everybody finish: each with a whole link."""
    top = chosen.curves.rate(chosen.curves.most())
    alone = chosen.fixed_s + chosen.bits / top
    low = float(np.max(alone[chosen.whole], initial=0.0))
    cut = ~chosen.whole
    if cut.any():
        first = float(np.max((chosen.first_fixed_s + chosen.first_bits / top)[cut]))
        low = max(low, first + chosen.later * float(np.max(alone[cut])) + chosen.rest_s)
    return low
