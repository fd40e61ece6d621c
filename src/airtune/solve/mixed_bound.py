"""Lower bounds of `ln K + ln T` over a box of round times, by prices.

A box holds ranges of T, A, X and of G, the longest backward phase of a device (see `mixed_problem`).
With a price for each limit the devices are independent, so the sum of their cheapest lines is a
bound whatever the prices. It holds for the whole box in either of two ways:

- *ends*: no line needs less of its link than at the upper ends of T, A and X, and the server and the
  downlinks never have more time than at the upper end of T and the lower ends of the others;
- *corners*: what a line needs of its link is convex in the times, so it is not below
  its tangent at the middle. The sum of cheapest lines is then concave in the times, and its least
  value stands at a corner.

The prices are raised by Polyak's steps towards the value that would rule the box out.

Source: Lagrangian relaxation of the multiple-choice knapsack with several rows; step lengths after
Polyak (1969). The bounds over a box are this project's.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from airtune.plan import Bools, Floats, Ints
from airtune.solve.mixed_problem import MixedProblem

_STEPS = 40
_PATIENCE = 3
"""Steps without progress after which the aim is lowered."""
_FLAT = 2e-3
"""Aim, in ln(K T), below which steps are given up."""
_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Box:
    """Ranges of the round's times, in seconds."""

    round_s: tuple[float, float]
    """T."""
    send_s: tuple[float, float]
    """A."""
    first_s: tuple[float, float]
    """X."""
    back_s: tuple[float, float]
    """G."""

    def sides(self, later: int) -> dict[str, float]:
        """Return how much each side may change ln T."""
        least, most = self.round_s
        return {
            "round_s": float(np.log(most / least)),
            "send_s": later * (self.send_s[1] - self.send_s[0]) / most,
            "first_s": (self.first_s[1] - self.first_s[0]) / most,
            "back_s": later * (self.back_s[1] - self.back_s[0]) / most,
        }

    def corners(self) -> Floats:
        """Return T, A and X at every corner, shape (8, 3)."""
        return np.array(list(itertools.product(self.round_s, self.send_s, self.first_s)))


@dataclass(frozen=True, slots=True)
class Relaxed:
    """The lines of a box and what they ask of each limit, at c points of the box."""

    problem: MixedProblem
    fixed: Floats
    """The line's part of ln K without pruning, shape (n, k); inf where it may not be taken."""
    share: Floats
    """Of the link's budget; 0 on a link of its own; shape (c, n, k)."""
    left_s: Floats
    """For the server and the downlinks, shape (c,)."""
    log_s: Floats
    """ln T, shape (c,)."""
    scale: Floats
    """Of the prices: steps are taken in prices times their scale."""

    @classmethod
    def of(cls, problem: MixedProblem, box: Box, *, corners: bool = False) -> Relaxed | None:
        """Return the relaxed menus; None where a device has no line left or no time is left."""
        later, curves = problem.steps - 1, problem.curves
        ends = np.array([box.round_s[1], box.send_s[1], box.first_s[1]])
        least = np.array([box.round_s[1], box.send_s[0], box.first_s[0]])
        left_s = _left_s(least, box.back_s[0], later)
        if float(left_s) < 0.0:
            return None
        share, fits = _shares(problem, ends)
        alone = curves.dedicated[:, None]
        back_s = problem.backward_s + np.where(alone, problem.down_s, 0.0)
        fits &= problem.whole | (back_s <= box.back_s[1] * (1.0 + _SLACK)) | (later == 0)
        fits &= problem.steps * problem.server_s <= left_s * (1.0 + _SLACK)
        if not fits.any(axis=1).all():
            return None
        points = np.array([ends])
        lefts, logs = np.array([left_s]), np.log([box.round_s[0]])
        tables = np.where(fits, share, 0.0)[None]
        if corners:
            points = box.corners()
            lefts = _left_s(points.T, box.back_s[0], later)
            logs, tables = np.log(points[:, 0]), _tangents(problem, box, points, tables[0])
        budget = np.where(curves.dedicated, np.inf, curves.budget[curves.link])[:, None]
        weighted = problem.weight[:, None] * problem.log_rounds
        return cls(
            problem=problem, fixed=np.where(fits, weighted, np.inf), share=tables / budget,
            left_s=np.asarray(lefts, np.float64), log_s=logs, scale=_scale(problem, float(np.mean(lefts))),
        )  # fmt: skip

    def dual(self, prices: Floats) -> tuple[float, Floats, Ints]:
        """Return the bound at these prices, its slope by each price, and the cheapest lines.

        `prices` are those of the links (one each), of the time left beside each link (one each), of
        the server's memory, and the slope of pruning's part; shape (2 links + 2,).
        """
        problem, of = self.problem, self.problem.of
        link, links = problem.curves.link, problem.curves.budget.shape[0]
        air, time, memory, slope = (
            prices[:links], prices[links : 2 * links],
            prices[-2] / problem.server_memory_bytes, float(prices[-1]),
        )  # fmt: skip
        served_s = problem.steps * problem.server_s
        shared = np.where(problem.curves.dedicated, 0.0, time[link])[:, None]
        received_s = (problem.steps - 1) * problem.down_s
        cost = (
            self.fixed + slope * problem.weight[:, None] * problem.pruned
            + float(np.sum(time)) * served_s + shared * received_s + memory * problem.server_bytes
        )  # fmt: skip
        totals = cost + air[link][:, None] * self.share
        values = totals.min(axis=2).sum(axis=1) + self.log_s - np.sum(time) * self.left_s
        at = int(np.argmin(values))
        pick = np.argmin(totals[at], axis=1)
        held = np.bincount(link, of(self.share[at], pick), minlength=links)
        own = np.where(problem.curves.dedicated, 0.0, of(received_s, pick))
        taken_s = np.bincount(link, own, minlength=links) + float(np.sum(of(served_s, pick)))
        stored = float(np.sum(of(problem.server_bytes, pick))) / problem.server_memory_bytes
        pruned = float(problem.weight @ of(problem.pruned, pick))
        grid = problem.prune_grid
        best = int(np.argmin(problem.prune_log_rounds - slope * grid))
        conjugate = problem.prune_log_rounds[best] - slope * grid[best]
        bound = float(values[at] + conjugate - np.sum(air) - prices[-2])
        gradient = np.concatenate([
            held - 1.0, taken_s - self.left_s[at], [stored - 1.0, pruned - grid[best]],
        ])  # fmt: skip
        return bound, gradient, pick

    def raise_bound(self, prices: Floats, wanted: float) -> tuple[float, Floats, Ints]:
        """Raise the bound until it reaches a value that decides the matter, or steps run out.

        Returns:
            The best bound, its prices and the cheapest lines there.
        """
        best, best_prices, best_pick = -np.inf, prices, np.zeros(0, np.int64)
        ahead, waited = np.inf, 0
        for _ in range(_STEPS):
            bound, gradient, pick = self.dual(prices)
            waited = 0 if bound > best + 0.05 * min(ahead, 1.0) else waited + 1
            if bound > best:
                best, best_prices, best_pick = bound, prices, pick
            ahead = min(ahead, wanted - best + 1e-6)
            if waited >= _PATIENCE:
                ahead, waited, prices = 0.4 * ahead, 0, best_prices
                bound, gradient, pick = self.dual(prices)
            rising = gradient / self.scale * ((prices > 0.0) | (gradient > 0.0))
            length = float(rising @ rising)
            if best >= wanted or length <= 1e-18 or ahead < _FLAT:
                break
            step = (best + ahead - bound) / length * rising / self.scale
            prices = np.maximum(prices + step, 0.0)
        return best, best_prices, best_pick


def _scale(problem: MixedProblem, left_s: float) -> Floats:
    links = problem.curves.budget.shape[0]
    return np.concatenate([np.ones(links), np.full(links, max(left_s, 1e-9)), np.ones(2)])


def _left_s(times: Floats, back_s: float, later: int) -> Floats:
    """Return what T, A and X leave for the server and the downlinks."""
    return np.asarray(times[0] - times[2] - later * (times[1] + back_s), np.float64)


def _rates(problem: MixedProblem, times: Floats) -> tuple[Floats, Floats, Bools, Bools]:
    """Return the rate that each line needs at T, A and X, the seconds it has for it, and more.

    The last two say which lines have time at all, and which are bound by the first step.
    """
    later = problem.steps - 1
    left = np.where(problem.whole, times[0], times[1] if later else np.inf) - problem.fixed_s
    begun = problem.fetch_s + problem.fixed_s + problem.backward_s + problem.down_s
    start = np.where(problem.whole, np.inf, times[2] - begun)
    fits = problem.allowed & (left > 0.0) & (start > 0.0)
    rate = problem.bits / np.where(left > 0.0, left, np.inf)
    first = (problem.bits + problem.adapter_bits) / np.where(start > 0.0, start, np.inf)
    is_first = first > rate
    return np.maximum(rate, first), np.where(is_first, start, left), fits, is_first


def _shares(problem: MixedProblem, times: Floats) -> tuple[Floats, Bools]:
    """Return the share that each line needs at T, A and X, and whether it can be had."""
    rate, _, fits, _ = _rates(problem, times)
    flat = problem.curves.take(np.repeat(np.arange(len(problem)), rate.shape[1]))
    share = flat.share_for(np.where(fits, rate, 1.0).ravel()).reshape(rate.shape)
    return share, fits & (share <= problem.curves.most()[:, None] * (1.0 + _SLACK))


def _tangents(problem: MixedProblem, box: Box, points: Floats, last: Floats) -> Floats:
    """Return the shares' tangents at the middle of the box, at its points; shape (c, n, k).

    What cannot be had in the middle counts as at the upper ends, which is never more than it needs.
    """
    middle = points.mean(axis=0)
    share, known = _shares(problem, middle)
    rate, left, _, is_first = _rates(problem, middle)
    flat = problem.curves.take(np.repeat(np.arange(len(problem)), rate.shape[1]))
    safe = np.where(known, share, 1.0)
    bend = flat.slope(safe.ravel()).reshape(rate.shape)
    slope = np.where(known, -rate / np.where(known, left, 1.0) / bend, 0.0)
    ahead = points - middle
    moved = np.where(
        problem.whole, ahead[:, 0, None, None],
        np.where(is_first, ahead[:, 2, None, None], ahead[:, 1, None, None]),
    )  # fmt: skip
    return np.where(known, safe + slope * moved, last)
