"""Whole and cut devices, pruning, ranks, cuts, codecs and shares together, within a proved bound.

The best choice is sought by branch and bound over the times of a round: a box of T, A, X and G whose
bound on `ln K` plus the ln of its least T cannot beat the best answer is dropped, any other is
halved along its longest side. Every choice that the bounds meet on the way is an answer: its round
is timed exactly. Answers of other methods may be given as starts, so the result is never worse than
they are.

Source: this project's; see `mixed_problem`.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from airtune.errors import InfeasibleError
from airtune.plan import Floats, Ints
from airtune.solve.bandwidth import SolveStatus
from airtune.solve.mixed_bound import Box, Relaxed
from airtune.solve.mixed_problem import MixedProblem, RoundTimes, round_times

_SMALL = 0.3
"""Longest side of a box, in ln T, up to which its corners are looked at too."""


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
    """As in `Relaxed.dual`, at the answer's times: what more of each limit is worth in ln(K T)."""
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

    def __init__(self, problem: MixedProblem) -> None:
        self.problem = problem
        self.cost, self.log_k = np.inf, 0.0
        self.index: Ints | None = None
        self.times: RoundTimes | None = None
        self._seen: set[bytes] = set()

    def try_(self, index: Ints) -> bool:
        """Time a choice unless it was met before; return whether it is the best so far."""
        key = index.tobytes()
        if key in self._seen or not self.problem.fits_server(index):
            return False
        self._seen.add(key)
        log_k = self.problem.log_k(index)
        times = round_times(
            self.problem, index, most_s=float(np.exp(min(self.cost - log_k, 600.0)))
        )
        cost = log_k + float(np.log(times.round_s))
        if cost >= self.cost:
            return False
        self.cost, self.log_k, self.index, self.times = cost, log_k, index, times
        return True


def solve_mixed(
    problem: MixedProblem, starts: Sequence[Ints] = (), *, tolerance: float = 0.01,
    most_boxes: int = 400,
) -> MixedSolution:  # fmt: skip
    """Choose a line for every device and divide the uplinks, at the least K T within a proved gap.

    Args:
        problem: the menus.
        starts: choices to begin with, each of shape (n,); the answer is never worse.
        tolerance: relative gap at which the search ends.
        most_boxes: boxes after which it ends with the gap it has proved.

    Returns:
        The answer; `status` is "stalled" where the gap is above the tolerance.

    Raises:
        InfeasibleError: if the server's memory holds no choice that was met.
    """
    best = _Best(problem)
    for index in [*starts, *_simple(problem)]:
        best.try_(np.asarray(index, np.int64))
    if best.index is None:
        raise InfeasibleError(
            f"the server has {problem.server_memory_bytes:g} bytes of memory, but no choice of "
            "cuts that was tried fits it; lower the batch or give it more memory"
        )
    floor, prices, boxes = _search(problem, best, np.log1p(tolerance), most_boxes)
    if best.index is None or best.times is None:  # for the type checker: tried above
        raise InfeasibleError("no choice was found")
    bound = min(floor, best.cost)
    return MixedSolution(
        index=best.index, share=best.times.share, times=best.times, log_k=best.log_k,
        log_bound=bound, prices=prices, boxes=boxes,
        status="optimal" if best.cost - bound <= np.log1p(tolerance) * 1.0001 else "stalled",
    )  # fmt: skip


def _simple(problem: MixedProblem) -> list[Ints]:
    """Return choices that need no search: the least ln K, the lightest on the server, the quickest."""
    rows = problem.allowed
    alone = problem.curves.rate(problem.curves.equal_shares())[:, None]
    n = problem.steps
    whole = problem.fixed_s + problem.bits / alone
    cut = problem.fetch_s + problem.adapter_bits / alone + n * (
        problem.fixed_s + problem.bits / alone + problem.backward_s + problem.down_s
        + len(problem) * problem.server_s
    )  # fmt: skip
    quick = np.where(problem.whole, whole, cut) * np.exp(problem.log_rounds + problem.pruned)
    tables = (problem.log_rounds + problem.pruned, problem.server_bytes, quick,
              np.where(problem.whole, quick, quick + 1e6), np.where(problem.whole, quick + 1e6, quick))  # fmt: skip
    return [np.argmin(np.where(rows, table, np.inf), axis=1) for table in tables]


def _search(
    problem: MixedProblem, best: _Best, tolerance: float, most_boxes: int
) -> tuple[float, Floats, int]:
    """Return the least bound left, prices near the answer, and how many boxes were looked at."""
    links = problem.curves.budget.shape[0]
    start = float(np.exp(best.cost))
    prices = np.concatenate([np.full(links, 0.1), np.full(links, 0.1 / start), [0.0, 0.1]])
    order = itertools.count()
    heap: list[tuple[float, int, Box, Floats]] = [
        (-np.inf, next(order), _root(problem, best), prices)
    ]
    dropped, boxes = np.inf, 0
    while heap and boxes < most_boxes:
        low, _, box, prices = heapq.heappop(heap)
        if low >= best.cost - tolerance:
            heapq.heappush(heap, (low, next(order), box, prices))
            break
        for part in _halves(box, problem.steps - 1):
            boxes += 1
            bound, part_prices = _bounded(problem, best, part, prices, tolerance)
            bound = max(bound, low)
            if bound >= best.cost - tolerance:
                dropped = min(dropped, bound)
            else:
                heapq.heappush(heap, (bound, next(order), part, part_prices))
    return min([dropped, *(row[0] for row in heap[:1])]), prices, boxes


def _root(problem: MixedProblem, best: _Best) -> Box:
    least_k = float(np.sum(problem.weight * np.min(
        np.where(problem.allowed, problem.log_rounds, np.inf), axis=1)))  # fmt: skip
    most_s = float(np.exp(best.cost - least_k))
    top = problem.curves.rate(problem.curves.most())[:, None]
    alone = np.where(problem.allowed, problem.fixed_s + problem.bits / top, np.inf)
    low = float(np.max(np.min(alone, axis=1)))
    later = max(problem.steps - 1, 1)
    back = problem.backward_s + np.where(problem.curves.dedicated[:, None], problem.down_s, 0.0)
    longest = float(np.max(np.where(problem.allowed, back, 0.0)))
    return Box((low, max(most_s, low)), (0.0, most_s / later), (0.0, most_s),
               (0.0, min(longest, most_s / later)))  # fmt: skip


def _halves(box: Box, later: int) -> tuple[Box, Box]:
    """Return the two halves of a box along the side that changes a round's time most."""
    sides = box.sides(later)
    side = max(sides, key=lambda name: sides[name])
    low, high = getattr(box, side)
    middle = float(np.sqrt(low * high)) if side == "round_s" else 0.5 * (low + high)
    return replace(box, **{side: (low, middle)}), replace(box, **{side: (middle, high)})


def _bounded(
    problem: MixedProblem, best: _Best, box: Box, prices: Floats, tolerance: float
) -> tuple[float, Floats]:
    """Return a bound on `ln K + ln T` of a box and its prices; times the choices met on the way."""
    wanted, bound = best.cost - tolerance, -np.inf
    small = max(box.sides(problem.steps - 1).values()) <= _SMALL
    for corners in (False, True) if small else (False,):
        relaxed = Relaxed.of(problem, box, corners=corners)
        if relaxed is None:
            return np.inf, prices
        value, prices, pick = relaxed.raise_bound(prices, wanted)
        bound = max(bound, value)
        if bound >= wanted:
            return bound, prices
    best.try_(pick)
    return bound, prices
