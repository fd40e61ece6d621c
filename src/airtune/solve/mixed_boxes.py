"""Boxes of round times: all that hold better answers, their halves, and those near an answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from airtune.solve.mixed_menu import MixedMenu, Span
from airtune.solve.mixed_times import RoundTimes

_NARROW = 0.999
"""Least times of a narrow box, as a part of the most."""
_SOONER = (1.0, 0.9)
"""Round times tried near an answer in which nobody is cut, as parts of its own."""
_CUT_SOONER = [(t, a, x) for t in (1.0, 0.93) for a in (1.0, 0.8) for x in (1.0, 0.8)]
"""The same where devices are cut: of T, and beside it of A and of X."""
_GUESS = 1.0 / 3.0
"""Part of the round that X, and that all of A, take where nothing is known."""


@dataclass(frozen=True, slots=True)
class Box:
    """Ranges of the round's times, in seconds; without A and X nobody is cut."""

    round_s: Span
    """T."""
    send_s: Span | None = None
    """A."""
    first_s: Span | None = None
    """X."""

    def widths(self, later: int) -> tuple[float, float, float]:
        """Return how much each side may change ln T."""
        (least, most), send, first = self.round_s, self.send_s, self.first_s
        return (
            float(np.log(most / least)),
            later * (send[1] - send[0]) / most if send else 0.0,
            (first[1] - first[0]) / most if first else 0.0,
        )


def near(menu: MixedMenu, times: RoundTimes) -> list[Box]:
    """Return narrow boxes at an answer's times and somewhat below them."""
    later, end_s, boxes = max(menu.later, 1), times.round_s, []
    if menu.problem.allowed[:, menu.whole.columns].any(axis=1).all():
        boxes = [Box(_narrow(t * end_s)) for t in _SOONER]
    if menu.cut.columns.size:
        send_s, first_s = times.send_s or _GUESS * end_s / later, times.first_s or _GUESS * end_s
        boxes += [
            Box(_narrow(t * end_s), _narrow(t * a * send_s), _narrow(t * x * first_s))
            for t, a, x in _CUT_SOONER
        ]
    return boxes


def at_times(menu: MixedMenu, times: RoundTimes) -> Box:
    """Return a narrow box at an answer's times."""
    end = _narrow(times.round_s)
    is_cut = times.first_s > 0.0
    return Box(end, _narrow(times.send_s), _narrow(times.first_s)) if is_cut else Box(end)


def _narrow(end_s: float) -> Span:
    return _NARROW * end_s, end_s


def roots(menu: MixedMenu, limit: float) -> list[Box]:
    """Return boxes that hold every choice whose ln(K T) is below a limit: nobody cut, and somebody."""
    problem = menu.problem
    least_k = float(
        np.sum(
            problem.weight * np.min(np.where(problem.allowed, problem.log_rounds, np.inf), axis=1)
        )
    )
    most_s = float(np.exp(min(limit - least_k, 600.0)))
    top = problem.curves.rate(problem.curves.most())[:, None]
    alone = np.where(problem.allowed, problem.fixed_s + problem.bits / top, np.inf)
    whole, cut = menu.whole.columns, menu.cut.columns
    found = []
    low = float(np.max(np.min(alone[:, whole], axis=1, initial=np.inf)))
    if low < most_s:
        found.append(Box((low, most_s)))
    if cut.size:
        low = float(np.max(np.min(alone, axis=1)))
        begun = problem.fetch_s + problem.fixed_s + problem.backward_s + problem.down_s
        first = begun + (problem.bits + problem.adapter_bits) / top
        first_s = float(np.min(np.where(problem.allowed, first, np.inf)[:, cut]))
        send_s = float(np.min(alone[:, cut]))
        later = max(menu.later, 1)
        low = max(low, first_s + menu.later * send_s)
        if low < most_s:
            found.append(Box((low, most_s), (send_s, most_s / later), (first_s, most_s)))
    return found


def halves(box: Box, later: int) -> list[Box]:
    """Return the two halves of a box along the side that changes a round's time most."""
    widths = box.widths(later)
    side = max(range(3), key=lambda place: widths[place])
    name = ("round_s", "send_s", "first_s")[side]
    low, high = getattr(box, name)
    middle = float(np.sqrt(low * high))
    return [replace(box, **{name: span}) for span in ((low, middle), (middle, high))]
