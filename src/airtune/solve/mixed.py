"""Whole and cut devices, pruning, ranks, cuts, codecs and shares together, within a proved bound.

The best choice is sought by branch and bound over the times of a round: a box of T, A and X whose
bound cannot beat the best answer is dropped, any other is halved along its longest side. Every
choice that the bounds meet on the way is an answer: its round is timed exactly. Answers of other
methods may be given as starts, so the result is never worse than they are.

Source: this project's; see `mixed_problem`.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from airtune.errors import InfeasibleError
from airtune.plan import Floats, Ints
from airtune.solve.bandwidth import SolveStatus
from airtune.solve.mixed_bound import Boxes
from airtune.solve.mixed_boxes import Box, at_times, halves, near, roots
from airtune.solve.mixed_menu import MixedMenu
from airtune.solve.mixed_problem import MixedProblem
from airtune.solve.mixed_times import RoundTimes, round_times

_SMALL = 0.05
"""Longest side of a box, in ln T, up to which tangents are tried too."""
_NUMBERS = 2e5
"""Costs of lines that are worked on together."""
_MOST_TOGETHER = 16
_STEPS = 4
_PROBES = 6
_PRICE_STEPS = 25
_ROUGH = 1e-4
"""To which ln T of choices is found while others are sought."""


@dataclass(frozen=True, slots=True)
class MixedSolution:
    """A line and a share for every device, and how far they can be from the optimum."""

    index: Ints
    share: Floats
    times: RoundTimes
    log_k: float
    log_bound: float
    """No choice has a smaller `ln K + ln T`."""
    prices: Floats
    """As `MixedPrices.split` takes them apart, of a box around the answer's times."""
    status: SolveStatus
    boxes: int

    @property
    def log_cost(self) -> float:
        """Return `ln K + ln T`."""
        return self.log_k + float(np.log(self.times.round_s))

    @property
    def gap(self) -> float:
        """Relative distance of K T from the bound."""
        return float(np.expm1(self.log_cost - self.log_bound))


class _Best:
    """The best answer met so far."""

    def __init__(self, problem: MixedProblem, better_than: float) -> None:
        self.problem, self.better_than, self.cost = problem, better_than, np.inf
        self.index: Ints | None = None
        self.times = RoundTimes(np.inf, 0.0, 0.0, np.zeros(0))
        self._seen: set[bytes] = set()

    @property
    def limit(self) -> float:
        """Return the ln(K T) that another answer must be below."""
        return min(self.cost, self.better_than)

    def try_(self, index: Ints) -> None:
        """Time a choice unless it was met before, and keep it if it is the best."""
        key = index.tobytes()
        if key in self._seen:
            return
        self._seen.add(key)
        if not self.problem.fits(index):
            return
        log_k = self.problem.log_k(index)
        limit = self.cost if self.index is None else self.limit
        most_s = float(np.exp(min(limit - log_k, 600.0)))
        times = round_times(self.problem, index, most_s=most_s, tolerance=_ROUGH)
        cost = log_k + float(np.log(times.round_s))
        if cost < self.cost:
            self.cost, self.index, self.times = cost, index, times


def solve_mixed(
    problem: MixedProblem,
    starts: Iterable[Ints] = (),
    *,
    tolerance: float = 0.01,
    most_boxes: int = 300,
    better_than: float = float("inf"),
) -> MixedSolution:
    """Choose a line for every device and divide the uplinks, at the least K T within a proved gap.

    Args:
        problem: the menus.
        starts: choices to begin with, each of shape (n,); the answer is never worse.
        tolerance: relative gap at which the search ends.
        most_boxes: boxes after which it ends with the gap it has proved.
        better_than: a value of ln(K T) that is known to be had elsewhere: nothing above it is sought.

    Returns:
        The answer; `status` is "stalled" where the gap is above the tolerance.

    Raises:
        InfeasibleError: if no choice met keeps to the server's memory and the rounds allowed.
    """
    best = _Best(problem, better_than)
    for index in itertools.chain(starts, _simple(problem)):
        best.try_(np.asarray(index, np.int64))
    if best.index is None:
        raise InfeasibleError(_nothing(problem))
    slack = float(np.log1p(tolerance))
    floor, prices, boxes = _search(problem, best, slack, most_boxes)
    times = round_times(problem, best.index)
    log_k = problem.log_k(best.index)
    cost = log_k + float(np.log(times.round_s))
    return MixedSolution(
        index=best.index,
        share=times.share,
        times=times,
        log_k=log_k,
        log_bound=min(floor, cost),
        prices=prices,
        boxes=boxes,
        status="optimal" if min(cost, better_than) - floor <= slack * 1.0001 else "stalled",
    )


def _nothing(problem: MixedProblem) -> str:
    """Say why no choice was met that keeps to the limits."""
    lightest = _argmin(problem, problem.server_bytes)
    least = float(np.sum(problem.of(problem.server_bytes, lightest)))
    if least > problem.server_memory_bytes:
        return (
            f"the server has {problem.server_memory_bytes:g} bytes of memory, but no choice of "
            f"cuts needs less than {least:g}; lower the batch or give it more memory"
        )
    fewest = problem.log_k(_argmin(problem, problem.log_rounds + problem.pruned))
    return (
        f"no choice was met within {np.exp(problem.most_log_rounds):.3g} times the rounds and the "
        f"server's memory; the one that needs fewest takes {np.exp(fewest):.3g} times the rounds"
    )


def _argmin(problem: MixedProblem, table: Floats) -> Ints:
    return np.asarray(np.argmin(np.where(problem.allowed, table, np.inf), axis=1), np.int64)


def _simple(problem: MixedProblem) -> list[Ints]:
    """Return choices that need no search: the least ln K, the lightest on the server, the quickest."""
    alone = problem.curves.rate(problem.curves.equal_shares())[:, None]
    whole = problem.fixed_s + problem.bits / alone
    cut = (
        problem.fetch_s
        + problem.adapter_bits / alone
        + problem.steps
        * (
            problem.fixed_s
            + problem.bits / alone
            + problem.backward_s
            + problem.down_s
            + len(problem) * problem.server_s
        )
    )
    quick = np.where(problem.whole, whole, cut) * np.exp(problem.log_rounds + problem.pruned)
    tables = (
        problem.log_rounds + problem.pruned,
        problem.server_bytes,
        quick,
        np.where(problem.whole, quick, quick + 1e6),
        np.where(problem.whole, quick + 1e6, quick),
    )
    return [_argmin(problem, table) for table in tables]


def _search(
    problem: MixedProblem, best: _Best, slack: float, most_boxes: int
) -> tuple[float, Floats, int]:
    """Return the least bound left, prices near the answer, and how many boxes were looked at."""
    menu, order = MixedMenu(problem), itertools.count()
    first = _probed(menu, best, slack)
    heap = [(-np.inf, next(order), box, first) for box in roots(menu, best.limit)]
    together = int(np.clip(_NUMBERS / problem.allowed.size, 1, _MOST_TOGETHER))
    dropped, boxes = np.inf, 0
    while heap and boxes < most_boxes and heap[0][0] < best.limit - slack:
        taken = [heapq.heappop(heap) for _ in range(min(together, len(heap)))]
        parts = [
            (low, part, prices) for low, _, box, prices in taken for part in halves(box, menu.later)
        ]
        boxes += len(parts)
        for low, part, prices, bound in _bounded(menu, best, parts, slack):
            bound = max(bound, low)
            if bound >= best.limit - slack:
                dropped = min(dropped, bound)
            else:
                heapq.heappush(heap, (bound, next(order), part, prices))
    prices = _prices_at(menu, best, first)
    return min([dropped, *(row[0] for row in heap[:1])]), prices, boxes


def _probed(menu: MixedMenu, best: _Best, slack: float) -> Floats:
    """Better the answer by choices near its own times; returns prices there."""
    links = menu.problem.curves.budget.size
    scale_s = float(np.exp(min(best.limit, 600.0)))
    prices = np.concatenate([np.full(links, 0.1), np.full(links, 0.1 / scale_s), [0.0, 0.1, 0.0]])
    for _ in range(_PROBES):
        before = best.cost
        tried = [(-np.inf, box, prices) for box in near(menu, best.times)]
        prices = min(_bounded(menu, best, tried, slack), key=lambda row: row[3])[2]
        if best.cost > before - _ROUGH * 10:
            break
    return prices


def _prices_at(menu: MixedMenu, best: _Best, prices: Floats) -> Floats:
    """Return prices at the answer's times."""
    box = Boxes(menu, [at_times(menu, best.times)], tangents=True)
    return np.asarray(box.raised(prices[None], best.cost, _PRICE_STEPS)[1][0], np.float64)


def _bounded(
    menu: MixedMenu, best: _Best, parts: Sequence[tuple[float, Box, Floats]], slack: float
) -> Iterable[tuple[float, Box, Floats, float]]:
    """Yield every box with its prices and its bound; times the choices met on the way."""
    wanted = best.limit - slack
    for is_cut in (False, True):
        rows = [row for row in parts if (row[1].send_s is not None) == is_cut]
        if not rows:
            continue
        boxes, prices = [row[1] for row in rows], np.stack([row[2] for row in rows])
        bound, prices, pick = Boxes(menu, boxes, tangents=False).raised(prices, wanted, _STEPS)
        small = [
            at
            for at, box in enumerate(boxes)
            if bound[at] < wanted and max(box.widths(menu.later)) <= _SMALL
        ]
        if small:
            near = Boxes(menu, [boxes[at] for at in small], tangents=True)
            again, more, other = near.raised(prices[small], wanted, _STEPS)
            better = np.flatnonzero(again > bound[small])
            rows_better = np.array(small)[better]
            bound[rows_better], prices[rows_better] = again[better], more[better]
            pick[rows_better] = other[better]
            for each in other[again < wanted]:
                best.try_(each)
        for at, (low, box, _) in enumerate(rows):
            if bound[at] < wanted:
                best.try_(pick[at])
            yield low, box, prices[at], float(bound[at])
