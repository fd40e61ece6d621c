"""The menus of a mixed problem, arranged for bounds: whole and cut lines apart, backward phases sorted.

What a line needs of its link at a time is computed once for every range of that time and kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.plan import Bools, Floats, Ints
from airtune.solve.mixed_problem import MixedProblem

FAR = 1e6
"""Cost of what may not be taken: more than any ln(K T)."""
_SLACK = 1e-9
_KEPT_NUMBERS = 2e7
"""Numbers in the tables that are kept."""

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Needs:
    """What c lines need of their links in a range of one time, over the link's budget, (n, c)."""

    last: Floats
    """At the upper end; 0 where no share is enough there."""
    ends: Floats
    """Tangent at the middle of the range, at its ends, (2, n, c); `last` where no share is enough
    in the middle."""
    lacks: Bools
    """Where no share is enough at the upper end."""


@dataclass(frozen=True, slots=True)
class LinkGroup:
    """The devices of one link, whose backward phases end together."""

    link: int
    rows: Ints
    order: Ints
    """Places in their table of sorted lines, by rising backward phase."""
    back_s: Floats
    """In this order."""


class LineColumns:
    """Lines of one kind: their columns, and what they need at a time."""

    def __init__(self, problem: MixedProblem, columns: Ints) -> None:
        """Take columns of a problem.

        Args:
            problem: with n devices.
            columns: c of its lines, all whole or all cut.
        """
        self.columns, self.allowed = columns, problem.allowed[:, columns]
        self.fixed = problem.weight[:, None] * problem.log_rounds[:, columns]
        self.pruned = problem.weight[:, None] * problem.pruned[:, columns]
        self._flat = problem.curves.take(np.repeat(np.arange(len(problem)), columns.size))
        self._most = problem.curves.most()[:, None]
        shared = ~problem.curves.dedicated
        self._over = np.where(shared, 1.0 / problem.curves.budget[problem.curves.link], 0.0)[
            :, None
        ]
        self._kept: dict[tuple[str, Span], Needs] = {}

    def needs(self, name: str, span: Span, bits: Floats, begun_s: Floats) -> Needs:
        """Return what the lines need to send within a time whose range is given.

        Args:
            name: of the time.
            span: its range, in seconds.
            bits: to send, (n, c).
            begun_s: when sending begins, (n, c).
        """
        key = name, span
        if key not in self._kept:
            if len(self._kept) * 3 * self.allowed.size > _KEPT_NUMBERS:
                self._kept.clear()
            self._kept[key] = self._computed(span, bits, begun_s)
        return self._kept[key]

    def _computed(self, span: Span, bits: Floats, begun_s: Floats) -> Needs:
        low, high = span
        last, ends_ok, _, _ = self._share(high, bits, begun_s)
        middle, ok, rate, left = self._share(0.5 * (low + high), bits, begun_s)
        slope = self._flat.slope(np.where(ok, middle, 1.0).ravel()).reshape(rate.shape)
        move = np.where(ok, -rate / left / slope, 0.0) * 0.5 * (high - low)
        last = np.where(ends_ok, last, 0.0) * self._over
        centre = np.where(ok, np.where(ok, middle, 0.0) * self._over, last)
        move = move * self._over
        return Needs(last, np.stack([centre - move, centre + move]), ~ends_ok)

    def _share(
        self, time_s: float, bits: Floats, begun_s: Floats
    ) -> tuple[Floats, Bools, Floats, Floats]:
        """Return shares, whether they can be had, rates and the seconds left at a time."""
        left = time_s - begun_s
        ok = self.allowed & (left > 0.0)
        left = np.where(ok, left, 1.0)
        rate = bits / left
        share = self._flat.share_for(rate.ravel()).reshape(rate.shape)
        return share, ok & (share <= self._most * (1.0 + _SLACK)), rate, left


class MixedMenu:
    """A problem's menus with what bounds need of them."""

    def __init__(self, problem: MixedProblem) -> None:
        """Arrange the lines of a problem."""
        self.problem, self.later = problem, problem.steps - 1
        used = problem.allowed.any(axis=0)
        self.whole = LineColumns(problem, np.flatnonzero(problem.whole & used))
        columns = np.flatnonzero(~problem.whole & used)
        alone = problem.curves.dedicated[:, None]
        back = problem.backward_s + np.where(alone, problem.down_s, 0.0)
        # lines of one backward phase on every device stand side by side
        kinds, kind = np.unique(back[:, columns], axis=1, return_inverse=True)
        by_kind = np.argsort(kind, kind="stable")
        self.cut = LineColumns(problem, columns[by_kind])
        self.starts = np.searchsorted(kind[by_kind], np.arange(kinds.shape[1]))
        at = self.cut.columns
        self.back_s, self.down_s = back[:, at], problem.down_s[:, at]
        self.served_s = problem.server_s[:, at]
        self.stored = problem.server_bytes[:, at] / problem.server_memory_bytes
        self.limits_rounds = bool(np.isfinite(problem.most_log_rounds))
        order = np.argsort(kinds, axis=1, kind="stable")
        is_sorted = bool(np.all(order == np.arange(kinds.shape[1])))
        self.order = None if is_sorted else order
        """Of the kinds of lines by backward phase; None where it is that of the kinds already."""
        sorted_s = np.take_along_axis(kinds, order, axis=1)
        link = problem.curves.link
        self.groups = tuple(
            self._group(int(each), np.flatnonzero(link == each), sorted_s)
            for each in np.unique(link)
        )
        self.links = np.zeros((len(problem), problem.curves.budget.size))
        self.links[np.arange(len(problem)), link] = 1.0

    def whole_needs(self, round_s: Span) -> Needs:
        """Return what whole lines need to end within T."""
        at = self.whole.columns
        return self.whole.needs("T", round_s, self.problem.bits[:, at], self.problem.fixed_s[:, at])

    def send_needs(self, send_s: Span) -> Needs:
        """Return what cut lines need to send a step's activation within A."""
        at = self.cut.columns
        return self.cut.needs("A", send_s, self.problem.bits[:, at], self.problem.fixed_s[:, at])

    def first_needs(self, first_s: Span) -> Needs:
        """Return what cut lines need to have the first step and the exchange within X."""
        problem, at = self.problem, self.cut.columns
        begun = problem.fetch_s + problem.fixed_s + problem.backward_s + problem.down_s
        sent = problem.bits + problem.adapter_bits
        return self.cut.needs("X", first_s, sent[:, at], begun[:, at])

    @staticmethod
    def _group(link: int, rows: Ints, sorted_s: Floats) -> LinkGroup:
        values = sorted_s[rows].ravel()
        order = np.argsort(values, kind="stable")
        return LinkGroup(link, rows, order, values[order])
