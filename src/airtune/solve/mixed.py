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
from dataclasses import dataclass, replace

import numpy as np

from airtune.errors import InfeasibleError
from airtune.plan import Floats, Ints
from airtune.solve.bandwidth import SolveStatus
from airtune.solve.mixed_bound import Box, Boxes
from airtune.solve.mixed_menu import FAR, MixedMenu
from airtune.solve.mixed_problem import MixedProblem
from airtune.solve.mixed_times import RoundTimes, round_times

_SMALL = 0.3
"""Longest side of a box, in ln T, up to which tangents are tried too."""
_NUMBERS = 2e5
"""Costs of lines that are worked on together."""
_MOST_TOGETHER = 32
_STEPS = 8
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
        self.times: RoundTimes | None = None
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
    problem: MixedProblem, starts: Iterable[Ints] = (), *, tolerance: float = 0.01,
    most_boxes: int = 300, better_than: float = float("inf"),
) -> MixedSolution:  # fmt: skip
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
        index=best.index, share=times.share, times=times, log_k=log_k,
        log_bound=min(floor, cost), prices=prices, boxes=boxes,
        status="optimal" if min(cost, better_than) - floor <= slack * 1.0001 else "stalled",
    )  # fmt: skip


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
    cut = problem.fetch_s + problem.adapter_bits / alone + problem.steps * (
        problem.fixed_s + problem.bits / alone + problem.backward_s + problem.down_s
        + len(problem) * problem.server_s
    )  # fmt: skip
    quick = np.where(problem.whole, whole, cut) * np.exp(problem.log_rounds + problem.pruned)
    tables = (
        problem.log_rounds + problem.pruned, problem.server_bytes, quick,
        np.where(problem.whole, quick, quick + 1e6), np.where(problem.whole, quick + 1e6, quick),
    )  # fmt: skip
    return [_argmin(problem, table) for table in tables]


def _search(
    problem: MixedProblem, best: _Best, slack: float, most_boxes: int
) -> tuple[float, Floats, int]:
    """Return the least bound left, prices near the answer, and how many boxes were looked at."""
    menu, order = MixedMenu(problem), itertools.count()
    links = problem.curves.budget.size
    scale_s = float(np.exp(min(best.limit, 600.0)))
    first = np.concatenate([np.full(links, 0.1), np.full(links, 0.1 / scale_s), [0.0, 0.1, 0.0]])
    heap = [(-np.inf, next(order), box, first) for box in _roots(menu, best)]
    together = int(np.clip(_NUMBERS / problem.allowed.size, 1, _MOST_TOGETHER))
    dropped, boxes = np.inf, 0
    while heap and boxes < most_boxes and heap[0][0] < best.limit - slack:
        taken = [heapq.heappop(heap) for _ in range(min(together, len(heap)))]
        parts = [(low, part, prices) for low, _, box, prices in taken
                 for part in _halves(box, menu.later)]  # fmt: skip
        boxes += len(parts)
        for low, part, prices, bound in _bounded(menu, best, parts, slack):
            bound = max(bound, low)
            if bound >= best.limit - slack:
                dropped = min(dropped, bound)
            else:
                heapq.heappush(heap, (bound, next(order), part, prices))
    near = heap[0][3] if heap else first
    return min([dropped, *(row[0] for row in heap[:1])]), near, boxes


def _roots(menu: MixedMenu, best: _Best) -> list[Box]:
    """Return boxes that hold every choice better than the best: nobody cut, and somebody."""
    problem = menu.problem
    least_k = float(np.sum(problem.weight * np.min(
        np.where(problem.allowed, problem.log_rounds, np.inf), axis=1)))  # fmt: skip
    most_s = float(np.exp(min(best.limit - least_k, 600.0)))
    top = problem.curves.rate(problem.curves.most())[:, None]
    alone = np.where(problem.allowed, problem.fixed_s + problem.bits / top, np.inf)
    whole, cut = menu.whole.columns, menu.cut.columns
    roots = []
    low = float(np.max(np.min(alone[:, whole], axis=1, initial=np.inf)))
    if low < most_s:
        roots.append(Box((low, most_s)))
    if cut.size:
        low = float(np.max(np.min(alone, axis=1)))
        begun = problem.fetch_s + problem.fixed_s + problem.backward_s + problem.down_s
        first = begun + (problem.bits + problem.adapter_bits) / top
        first_s = float(np.min(np.where(problem.allowed, first, np.inf)[:, cut]))
        send_s = float(np.min(alone[:, cut]))
        later = max(menu.later, 1)
        low = max(low, first_s + menu.later * send_s)
        if low < most_s:
            roots.append(Box((low, most_s), (send_s, most_s / later), (first_s, most_s)))
    return roots


def _halves(box: Box, later: int) -> list[Box]:
    """Return the two halves of a box along the side that changes a round's time most."""
    widths = box.widths(later)
    side = max(range(3), key=lambda place: widths[place])
    name = ("round_s", "send_s", "first_s")[side]
    low, high = getattr(box, name)
    middle = float(np.sqrt(low * high))
    return [replace(box, **{name: span}) for span in ((low, middle), (middle, high))]


def _bounded(
    menu: MixedMenu, best: _Best, parts: Sequence[tuple[float, Box, Floats]], slack: float
) -> Iterable[tuple[float, Box, Floats, float]]:
    """Yield every box with its prices and its bound; times the choices met on the way."""
    kinds: dict[tuple[bool, bool], list[tuple[float, Box, Floats]]] = {}
    for low, box, prices in parts:
        is_small = max(box.widths(menu.later)) <= _SMALL
        kinds.setdefault((box.send_s is not None, is_small), []).append((low, box, prices))
    for (_, is_small), rows in kinds.items():
        boxes = [box for _, box, _ in rows]
        prices = np.stack([each for _, _, each in rows])
        wanted = best.limit - slack
        bound, prices, pick = Boxes(menu, boxes, tangents=is_small).raised(prices, wanted, _STEPS)
        for at, (low, box, _) in enumerate(rows):
            if bound[at] < wanted and bound[at] < FAR / 2:
                best.try_(pick[at])
            yield low, box, prices[at], float(bound[at])
