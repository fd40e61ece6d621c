"""Lower bounds of `ln K + ln T` over boxes of round times, by prices.

A box holds ranges of T, A and X (see `mixed_problem`). With a price for each limit the devices are
independent but for G, the longest backward phase on a link. As G rises devices gain lines one by
one, so the least over all G is found by one sort, made once, and a running sum. The sum of the
cheapest lines is then a bound whatever the prices. It holds for the whole box in either of two ways:

- *ends*: no line needs less of its link than at the upper ends of T, A and X;
- *tangents*: what a line needs of its link is convex in the times, so it is not below its tangent at
  the middle of the box.

Either way the sum is concave in the times, and its least value stands at a corner. Where nobody is
cut there is a range of T alone. The prices are raised by Polyak's steps towards the value that would
rule the box out; boxes of one kind are worked on together.

Source: Lagrangian relaxation of the multiple-choice knapsack with several rows; step lengths after
Polyak (1969). The bounds over a box are this project's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from airtune.plan import Bools, Floats, Ints
from airtune.solve.mixed_boxes import Box
from airtune.solve.mixed_menu import FAR, MixedMenu

_PATIENCE = 3
"""Steps without progress after which the aim is lowered."""
_FLAT = 1e-3
"""Aim, in ln(K T), below which steps are given up."""


@dataclass(frozen=True, slots=True)
class MixedPrices:
    """Multipliers of b boxes: of ln(K T) by each limit."""

    share: Floats
    """Of each link, shape (b, links)."""
    second: Floats
    """Of the time beside each link, (b, links)."""
    memory: Floats
    """Of all of the server's, (b,)."""
    pruned: Floats
    """Slope of pruning's part of ln K, (b,)."""
    rounds: Floats
    """Of the limit on ln K, (b,)."""

    @classmethod
    def split(cls, table: Floats, links: int) -> MixedPrices:
        """Take apart rows of 2 links + 3 prices."""
        return cls(
            table[:, :links], table[:, links : 2 * links], table[:, -3], table[:, -2], table[:, -1]
        )


@dataclass(frozen=True, slots=True)
class Dual:
    """The bounds of b boxes at given prices."""

    bound: Floats
    slope: Floats
    """By each price, (b, prices)."""
    pick: Ints
    """Cheapest lines, (b, n)."""


class Boxes:
    """What the lines of b boxes need at w corners of T and v corners of A and X."""

    def __init__(self, menu: MixedMenu, boxes: Sequence[Box], *, tangents: bool) -> None:
        """Price the lines at the boxes' times.

        Args:
            menu: the lines.
            boxes: b of them, all with A and X or all without.
            tangents: what lines need is taken from their tangents, else from the upper ends.
        """
        self.menu, self.is_cut = menu, boxes[0].send_s is not None
        self.tangents = tangents
        self.round_s = np.array([box.round_s for box in boxes])
        needs = [menu.whole_needs(box.round_s) for box in boxes]
        self.whole_share = np.stack([each.ends if tangents else each.last[None] for each in needs])
        self.whole_fixed = np.stack([np.where(each.lacks, FAR, menu.whole.fixed) for each in needs])
        self.taken_s = np.zeros((len(boxes), 1))
        """X + (n - 1) A at the corners, (b, v)."""
        if self.is_cut:
            found = [self._cut_needs(box, tangents=tangents) for box in boxes]
            self.cut_share = np.stack([share for share, _, _ in found])
            self.cut_fixed = np.stack(
                [np.where(lacks, FAR, menu.cut.fixed) for _, lacks, _ in found]
            )
            self.taken_s = np.array([taken for _, _, taken in found])

    def dual(self, table: Floats) -> Dual:
        """Return the bounds at these prices, shape (b, 2 links + 3)."""
        problem = self.menu.problem
        prices = MixedPrices.split(table, problem.curves.budget.size)
        air = prices.share[:, None, problem.curves.link, None]
        whole = air * self.whole_share
        whole += self._whole_cost(prices)[:, None]
        alone = whole.min(axis=3, initial=FAR)
        cut, value = None, alone.sum(axis=2)[:, :, None]
        if self.is_cut:
            cut = air * self.cut_share
            cut += self._cut_cost(prices)[:, None]
            value, limit = self._together(alone, cut, prices)
        second = prices.second.sum(axis=1)[:, None]
        timed = np.log(self.round_s) - second * self.round_s
        at_s = self.round_s
        if not self.tangents:
            end = np.argmin(timed, axis=1)[:, None]
            timed, at_s = (np.take_along_axis(each, end, axis=1) for each in (timed, at_s))
        value = value + timed[:, :, None] + (second * self.taken_s)[:, None, :]
        rows, (w, v) = np.arange(len(value)), _least(value)
        back_s = limit[:, rows, w, v].T if self.is_cut else np.zeros(prices.share.shape)
        pick, share = self._cheapest(whole, cut, (w, v), back_s)
        constant, mean = self._conjugate(prices)
        bound = value[rows, w, v] + constant - prices.share.sum(axis=1) - prices.memory
        if self.menu.limits_rounds:
            bound = bound - prices.rounds * problem.most_log_rounds
        left_s = at_s[rows, w] - self.taken_s[rows, v]
        return Dual(bound, self._slope(pick, share, left_s, back_s, mean), pick)

    def raised(self, prices: Floats, wanted: float, steps: int) -> tuple[Floats, Floats, Ints]:
        """Raise the bounds until they reach a value that decides the matter, or steps run out.

        Returns:
            The best bounds, their prices and the cheapest lines there.
        """
        best = self.dual(prices)
        best_prices, now, scale = prices, best, self._scale()
        ahead = np.full(len(prices), np.inf)
        waited = np.zeros(len(prices), np.int64)
        for _ in range(steps):
            ahead = np.minimum(ahead, wanted - best.bound + 1e-6)
            stuck = waited >= _PATIENCE
            ahead[stuck] *= 0.4
            waited[stuck] = 0
            if np.all((best.bound >= wanted) | (ahead < _FLAT)):
                break
            at = np.where(stuck[:, None], best_prices, prices)
            slope = np.where(stuck[:, None], best.slope, now.slope) / scale
            bound = np.where(stuck, best.bound, now.bound)
            rising = slope * ((at > 0.0) | (slope > 0.0))
            length = np.maximum(np.sum(rising**2, axis=1), 1e-18)
            step = (best.bound + ahead - bound) / length
            prices = np.maximum(at + step[:, None] * rising / scale, 0.0)
            now = self.dual(prices)
            better = now.bound > best.bound
            waited = np.where(now.bound > best.bound + 0.05 * np.minimum(ahead, 1.0), 0, waited + 1)
            best_prices = np.where(better[:, None], prices, best_prices)
            best = Dual(
                np.where(better, now.bound, best.bound),
                np.where(better[:, None], now.slope, best.slope),
                np.where(better[:, None], now.pick, best.pick),
            )
        return best.bound, best_prices, best.pick

    def _cut_needs(self, box: Box, *, tangents: bool) -> tuple[Floats, Bools, list[float]]:
        """Return shares at the corners of A and X, (v, n, c), what lacks time, and X + (n - 1) A."""
        later = self.menu.later
        send_s, first_s = box.send_s or (0.0, 0.0), box.first_s or (0.0, 0.0)
        first = self.menu.first_needs(first_s)
        each = self.menu.send_needs(send_s) if later else first
        lacks = first.lacks | each.lacks
        if not tangents:
            return np.maximum(first.last, each.last)[None], lacks, [first_s[0] + later * send_s[0]]
        # the larger of two tangents is not concave: each line keeps to the one that rules in the middle
        by_first = first.ends.sum(axis=0) >= each.ends.sum(axis=0)
        corners = [(a, x) for a in (0, 1) for x in (0, 1)]
        share = np.stack([np.where(by_first, first.ends[x], each.ends[a]) for a, x in corners])
        return share, lacks, [first_s[x] + later * send_s[a] for a, x in corners]

    def _whole_cost(self, prices: MixedPrices) -> Floats:
        """Return what whole lines cost beside their shares, (b, n, c)."""
        cost = prices.pruned[:, None, None] * self.menu.whole.pruned
        cost += self.whole_fixed
        if self.menu.limits_rounds:
            cost += prices.rounds[:, None, None] * self.menu.whole.fixed
        return cost

    def _cut_cost(self, prices: MixedPrices) -> Floats:
        """Return what cut lines cost beside their shares, (b, n, c)."""
        menu, problem = self.menu, self.menu.problem
        own = np.where(problem.curves.dedicated, 0.0, prices.second[:, problem.curves.link])
        cost = (menu.later * own)[:, :, None] * menu.down_s
        cost += (problem.steps * prices.second.sum(axis=1))[:, None, None] * menu.served_s
        if np.any(prices.memory > 0.0):
            cost += prices.memory[:, None, None] * menu.stored
        cost += self.cut_fixed
        if menu.limits_rounds:
            cost += prices.rounds[:, None, None] * menu.cut.fixed
        return cost

    def _together(self, alone: Floats, cut: Floats, prices: MixedPrices) -> tuple[Floats, Floats]:
        """Return the least sums over lines and every G, (b, w, v), and that G, (links, b, w, v)."""
        menu = self.menu
        kinds = cut
        if menu.starts.size < cut.shape[3]:
            kinds = np.minimum.reduceat(cut, menu.starts, axis=3)
        if menu.order is not None:
            kinds = np.take_along_axis(kinds, menu.order[None, None], axis=3)
        start = alone[:, :, None, :, None]
        least = np.empty((*alone.shape[:2], *kinds.shape[1:3], kinds.shape[3] + 1))
        least[..., :1] = start
        np.minimum(start, np.minimum.accumulate(kinds, axis=3)[:, None], out=least[..., 1:])
        gain = least[..., :-1] - least[..., 1:]
        value = alone.sum(axis=2)[:, :, None] + np.zeros(cut.shape[1])
        limit = np.full((menu.links.shape[1], *value.shape), -np.inf)
        for group in menu.groups:
            here = gain if group.rows.size == gain.shape[3] else gain[:, :, :, group.rows]
            here = here.reshape(*value.shape, -1)[..., group.order]
            weight = menu.later * prices.second[:, group.link]
            sums = weight[:, None, None, None] * group.back_s
            sums = sums - np.cumsum(here, axis=3, out=here)
            at = np.argmin(sums, axis=3)
            least_sum = np.take_along_axis(sums, at[..., None], axis=3)[..., 0]
            value = value + np.minimum(least_sum, 0.0)
            limit[group.link] = np.where(least_sum < 0.0, group.back_s[at], -np.inf)
        return value, limit

    def _cheapest(
        self, whole: Floats, cut: Floats | None, corner: tuple[Ints, Ints], back_s: Floats
    ) -> tuple[Ints, Floats]:
        """Return the cheapest lines within G at each box's corner and their shares, (b, n)."""
        menu, boxes, (w, v) = self.menu, np.arange(len(whole)), corner
        at = boxes[:, None], np.arange(whole.shape[2])
        pick = np.zeros((len(whole), whole.shape[2]), np.int64)
        share, least = np.zeros(pick.shape), np.full(pick.shape, np.inf)
        if menu.whole.columns.size:
            here = _corner(whole, w)
            best = np.argmin(here, axis=2)
            pick, least = menu.whole.columns[best], here[*at, best]
            share = _corner(self.whole_share, w)[*at, best]
        if cut is None:
            return pick, share
        within = menu.back_s <= back_s[:, menu.problem.curves.link, None]
        here = np.where(within, _corner(cut, v), np.inf)
        best = np.argmin(here, axis=2)
        less = here[*at, best] < least
        shares = _corner(self.cut_share, v)[*at, best]
        return np.where(less, menu.cut.columns[best], pick), np.where(less, shares, share)

    def _slope(
        self, pick: Ints, share: Floats, left_s: Floats, back_s: Floats, mean: Ints
    ) -> Floats:
        """Return the derivatives of the bounds by each price: by how much each limit is exceeded."""
        menu = self.menu
        problem, at = menu.problem, np.arange(pick.shape[1])

        def total(table: Floats) -> Floats:
            return np.asarray(table[at, pick].sum(axis=1), np.float64)

        held = share @ menu.links - 1.0
        own = np.where(problem.curves.dedicated, 0.0, problem.down_s[at, pick]) @ menu.links
        taken = problem.steps * total(problem.server_s)[:, None]
        taken = taken + menu.later * (own + np.maximum(back_s, 0.0)) - left_s[:, None]
        stored = total(problem.server_bytes) / problem.server_memory_bytes - 1.0
        pruned = problem.pruned[at, pick] @ problem.weight - problem.prune_grid[mean]
        rounds = problem.log_rounds[at, pick] @ problem.weight + problem.prune_log_rounds[mean]
        return np.column_stack(
            [
                held,
                taken if self.is_cut else -np.ones(taken.shape),
                stored,
                pruned,
                rounds - problem.most_log_rounds if menu.limits_rounds else -np.ones(rounds.shape),
            ]
        )

    def _scale(self) -> Floats:
        """Return the size of each limit: steps are taken in prices times it, (b, prices)."""
        links, count = self.menu.links.shape[1], len(self.round_s)
        second = np.broadcast_to(self.round_s[:, 1:], (count, links))
        return np.concatenate([np.ones((count, links)), second, np.ones((count, 3))], axis=1)

    def _conjugate(self, prices: MixedPrices) -> tuple[Floats, Ints]:
        """Return the least of pruning's part less its price over mean rates, and where, (b,)."""
        problem = self.menu.problem
        grid, factor = problem.prune_grid, (1.0 + prices.rounds)[:, None]
        values = factor * problem.prune_log_rounds - prices.pruned[:, None] * grid
        at = np.argmin(values, axis=1)
        return values[np.arange(at.size), at], at


def _corner(table: Floats, corner: Ints) -> Floats:
    """Return each box's table at its corner, (b, n, c)."""
    if len(table) == 1:
        return table[:, min(int(corner[0]), table.shape[1] - 1)]
    return table[:, 0] if table.shape[1] == 1 else table[np.arange(len(table)), corner]


def _least(value: Floats) -> tuple[Ints, Ints]:
    """Return where each box's least value stands, as corners of T and of A and X."""
    flat = np.argmin(value.reshape(len(value), -1), axis=1)
    w, v = np.divmod(flat, value.shape[2])
    return w, v
