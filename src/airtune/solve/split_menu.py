"""The menus under prices: what each line costs, and the best lines and limit B there.

With prices of the links' shares, of quality and of the groups' ends, devices are independent but
for B, the longest backward phase of a group. As B rises devices gain lines one by one, so the least
over all B is found by one sort, made once, and a running sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.plan import Floats, Ints
from airtune.solve.rates import Curves
from airtune.solve.split_problem import SLACK, SplitProblem


@dataclass(frozen=True, slots=True)
class Prices:
    """Multipliers: seconds a share of each link, seconds a unit of loss, weight of each group."""

    link: Floats
    loss: float
    group: Floats


@dataclass(frozen=True, slots=True)
class SplitMenu:
    """The problem with each device's lines in the order of what they need of B."""

    problem: SplitProblem
    order: Ints
    forward_s: Floats
    bits: Floats
    down_s: Floats
    """0 on a dedicated link."""
    after_s: Floats
    """What the line needs of B beside the group's sum; inf where it may not be used, (n, k)."""
    server_s: Floats
    loss: Floats
    group: Ints
    """Shape (n,): the shared link, or the one group of all dedicated ones."""
    groups: int
    members: tuple[Ints, ...]
    events: tuple[Ints, ...]
    """Of each group: places in its members' table after the first column, by rising need."""

    @classmethod
    def of(cls, problem: SplitProblem) -> SplitMenu:
        """Sort the lines of a problem."""
        curves = problem.curves
        alone = curves.dedicated[:, None]
        after = problem.backward_s + np.where(alone, problem.down_s, 0.0)
        after = np.where(problem.allowed, after, np.inf)
        order = np.argsort(after, axis=1, kind="stable")

        def by_need(table: Floats) -> Floats:
            return np.take_along_axis(table, order, axis=1)

        links = curves.budget.shape[0]
        group = np.where(curves.dedicated, links, curves.link)
        used, group = np.unique(group, return_inverse=True)
        after = by_need(after)
        members = tuple(np.flatnonzero(group == index) for index in range(used.size))
        return cls(
            problem=problem,
            order=order,
            forward_s=by_need(problem.forward_s),
            bits=by_need(problem.bits),
            down_s=by_need(np.where(alone, 0.0, problem.down_s)),
            after_s=after,
            server_s=by_need(problem.server_s),
            loss=by_need(problem.loss),
            group=np.asarray(group, np.int64),
            groups=used.size,
            members=members,
            events=tuple(np.argsort(after[rows, 1:], axis=None) for rows in members),
        )

    def shares(self, sent_s: float) -> Floats:
        """Return the share that each line needs to have sent by A, inf where none is enough."""
        left = sent_s - self.forward_s
        possible = (left > 0.0) & np.isfinite(self.after_s)
        rate = self.bits / np.where(possible, left, 1.0)
        curves = self._flat()
        share = curves.share_for(rate.ravel()).reshape(rate.shape)
        most = self.problem.curves.most()[:, None]
        return np.where(possible & (share <= most * (1.0 + SLACK)), share, np.inf)

    def slopes(self, sent_s: float, share: Floats) -> Floats:
        """Return the derivatives of finite shares by A, 0 elsewhere; never positive."""
        known = np.isfinite(share)
        left = np.where(known, sent_s - self.forward_s, 1.0)
        slope = self._flat().slope(np.where(known, share, 1.0).ravel()).reshape(share.shape)
        return np.where(known, -self.bits / left**2 / slope, 0.0)

    def _flat(self) -> Curves:
        lines = self.bits.shape[1]
        return self.problem.curves.take(np.repeat(np.arange(len(self.problem)), lines))

    def priced(self, share: Floats, prices: Prices) -> Floats:
        """Return each line's cost at these prices, shape (n, k), without its loss."""
        curves = self.problem.curves
        link = np.where(curves.dedicated, 0.0, prices.link[curves.link])[:, None]
        paid = np.where(np.isfinite(share), link * np.where(np.isfinite(share), share, 0.0), np.inf)
        return self.server_s + prices.group[self.group][:, None] * self.down_s + paid

    def best(self, cost: Floats, prices: Prices) -> tuple[float, Floats]:
        """Return the least of `sum cost + sum rho B` over lines within B, and each group's B."""
        total, limit = 0.0, np.empty(self.groups)
        for index, rows in enumerate(self.members):
            lowest = np.minimum.accumulate(cost[rows], axis=1)
            after = self.after_s[rows]
            has = np.isfinite(lowest)
            if not has[:, -1].all():
                return np.inf, np.full(self.groups, np.inf)
            first = np.argmax(has, axis=1)
            ends = np.arange(rows.size)
            floor = float(np.max(after[ends, first]))
            # before its first possible line a device counts as if it had that one already
            lowest = np.where(has, lowest, lowest[ends, first][:, None])
            gain = (lowest[:, :-1] - lowest[:, 1:]).ravel()[self.events[index]]
            need = np.maximum(after[:, 1:].ravel()[self.events[index]], floor)
            useful = np.isfinite(need)
            weight = prices.group[index]
            spent = float(np.sum(lowest[:, 0]))
            values = spent - np.cumsum(gain[useful]) + weight * need[useful]
            values = np.append(values, spent + weight * floor if not useful.any() else np.inf)
            # a line that needs no more than the floor is to be had at the floor
            below = int(np.count_nonzero(need[useful] <= floor))
            start = spent - float(np.sum(gain[useful][:below])) + weight * floor
            values[:below] = np.inf
            at = int(np.argmin(values))
            if start <= values[at]:
                total, limit[index] = total + start, floor
            else:
                total, limit[index] = total + float(values[at]), float(need[useful][at])
        return total, limit

    def pick(self, cost: Floats, limit: Floats) -> Ints:
        """Return the cheapest line of each device within its group's B."""
        within = self.after_s <= limit[self.group][:, None]
        return np.asarray(np.argmin(np.where(within, cost, np.inf), axis=1), np.int64)

    def original(self, pick: Ints) -> Ints:
        """Return the lines of the problem that stand at these places."""
        return self.order[np.arange(pick.shape[0]), pick]
