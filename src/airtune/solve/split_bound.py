"""Lower bounds of a split step: the dual at given prices over intervals of A, and better prices.

For fixed prices the dual at A is `A + min over B and lines`. A share is convex in A, so on an
interval its tangent at the middle stays below it; what is a minimum of straight lines in A is
concave, so the two ends bound the whole interval. Prices are raised by cutting planes: any choice
at any A bounds the dual from above by a line in the prices.
"""

from __future__ import annotations

import heapq
import itertools

import numpy as np

from airtune.plan import Floats
from airtune.solve.split_menu import Prices, SplitMenu

_MOST_INTERVALS = 40
_OPEN = 8
_FIRST = 4


def lower_bound(
    menu: SplitMenu, prices: Prices, step_s: float, tolerance: float
) -> tuple[float, list[float], int]:
    """Return a proved lower bound of the step, times A still open, and how many intervals it took."""
    problem = menu.problem
    free = np.where(np.isfinite(menu.after_s), menu.forward_s, np.inf)
    top = problem.curves.rate(problem.curves.most())[:, None]
    low = float(np.max(np.min(free + menu.bits / top, axis=1)))
    lines = np.where(np.isfinite(menu.after_s), menu.server_s, np.inf)
    least_after = float(np.sum(np.min(lines, axis=1))) + float(np.max(menu.after_s[:, 0]))
    high = step_s - least_after
    if high <= low:
        return low + least_after, [low * 1.001], 0
    wanted = step_s / (1.0 + tolerance)
    heap: list[tuple[float, float, float]] = []
    count = 0
    edges = np.linspace(low, high, _FIRST + 1).tolist()
    for start, end in itertools.pairwise(edges):
        heapq.heappush(heap, (_interval(menu, prices, start, end), start, end))
        count += 1
    while heap[0][0] < wanted and count < _MOST_INTERVALS:
        value, start, end = heapq.heappop(heap)
        middle = 0.5 * (start + end)
        for one, other in ((start, middle), (middle, end)):
            heapq.heappush(heap, (max(value, _interval(menu, prices, one, other)), one, other))
        count += 2
    worst = heapq.nsmallest(_OPEN, heap)
    left = sorted({0.5 * (start + end) for value, start, end in worst if value < wanted})
    return min(heap[0][0], step_s), left or [low * 1.001], count


def _interval(menu: SplitMenu, prices: Prices, start: float, end: float) -> float:
    """Return a bound of the step for every A of an interval."""
    middle = 0.5 * (start + end)
    last = menu.shares(end)
    share = menu.shares(middle)
    slope = menu.slopes(middle, share)
    # what is out of reach in the middle may be had towards the end, for no less than there
    share = np.where(np.isfinite(share), share, last)
    values = []
    for edge in (start, end):
        reach = share + slope * (edge - middle)
        cost = menu.priced(np.where(np.isfinite(last), reach, np.inf), prices)
        value, _ = menu.best(cost + prices.loss * menu.loss, prices)
        values.append(edge + value)
    # far from the middle a tangent says little: nowhere is a share below that at the end
    least, _ = menu.best(menu.priced(last, prices) + prices.loss * menu.loss, prices)
    used = np.unique(menu.problem.curves.link[~menu.problem.curves.dedicated])
    paid = float(prices.link[used] @ menu.problem.curves.budget[used])
    return max(min(values), start + least) - paid - prices.loss * menu.problem.loss_budget


def cut_of(menu: SplitMenu, prices: Prices, sent_s: float, share: Floats) -> tuple[float, Floats]:
    """Return the dual at A and the line of its choice: constant, then a slope for each price."""
    problem, curves = menu.problem, menu.problem.curves
    rows, links = np.arange(len(problem)), curves.budget.shape[0]
    cost = menu.priced(share, prices) + prices.loss * menu.loss
    value, limit = menu.best(cost, prices)
    if not np.isfinite(value):
        return np.inf, np.zeros(0)
    pick = menu.pick(cost, limit)
    held = np.where(curves.dedicated, 0.0, share[rows, pick])
    used = np.bincount(curves.link, ~curves.dedicated, minlength=links) > 0
    load = np.where(used, np.bincount(curves.link, held, minlength=links) - curves.budget, 0.0)
    down = np.bincount(menu.group, menu.down_s[rows, pick], minlength=menu.groups)
    loss = float(np.sum(menu.loss[rows, pick])) - problem.loss_budget
    start = sent_s + float(np.sum(menu.server_s[rows, pick]))
    line = np.concatenate([[start], load, [loss], down + limit])
    return float(line[0] + line[1:] @ _flat(prices)), line


def _flat(prices: Prices) -> Floats:
    return np.concatenate([prices.link, [prices.loss], prices.group])


def highest(menu: SplitMenu, cuts: list[Floats], unit: Floats, best: Prices) -> Prices | None:
    """Return the prices halfway to where the least of the cuts is highest; None = no progress."""
    from scipy.optimize import linprog

    links, table = best.link.shape[0], np.array(cuts)
    answer = linprog(
        np.append(np.zeros(unit.size), -1.0),
        A_ub=np.column_stack([-table[:, 1:] * unit, np.ones(len(cuts))]),
        b_ub=table[:, 0],
        A_eq=np.concatenate([np.zeros(links + 1), np.ones(menu.groups), [0.0]])[None, :],
        b_eq=[1.0],
        bounds=[(0.0, 8.0)] * (links + 1) + [(0.0, 1.0)] * menu.groups + [(None, None)],
    )
    if answer.x is None:
        return None
    y = 0.6 * answer.x[:-1] * unit + 0.4 * _flat(best)
    return Prices(y[:links], float(y[links]), y[links + 1 :])
