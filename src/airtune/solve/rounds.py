"""The rounds form: the pruning budget that reaches the target soonest.

A larger budget makes a round shorter and asks for more rounds. With the calibration's measured
ratio of rounds `K(Gamma)`, against no pruning, the time to the target is proportional to

    K(Gamma) T(Gamma),   T the least round time within the budget,

minimised over the calibrated range: first on a grid, then between the neighbours of its best point.
The answer may be no pruning at all.

Source: the idea of trading rounds against round time is common to this line of work; measuring K
instead of assuming a constant is this project's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from airtune.plan import Floats, PrunedRounds
from airtune.solve.bandwidth import divide_min_max
from airtune.solve.nested import prices_at
from airtune.solve.problem import JointProblem
from airtune.solve.response import first_price, first_ratio, prepare

_GRID = 8
_REFINE = 5
_LOAD_TOLERANCE = 1e-3
"""How exactly links are filled while budgets are compared; K is not known better than this."""


def rounds_ratio(rows: Sequence[PrunedRounds], pruned: float) -> float:
    """Return K at a weighted mean pruning rate: linear between the measured points.

    Beyond the last point the last slope goes on; nothing is assumed to get cheaper.
    """
    rate = np.array([row.pruned for row in rows])
    ratio = np.exp([row.log_rounds for row in rows])
    if pruned <= rate[-1] or rate.shape[0] < 2:
        return float(np.interp(pruned, rate, ratio))
    slope = (ratio[-1] - ratio[-2]) / (rate[-1] - rate[-2])
    return float(ratio[-1] + slope * (pruned - rate[-1]))


def convex_rounds(rows: Sequence[PrunedRounds]) -> tuple[Floats, Floats]:
    """Return pruning rates and ln K there, as the convex rising curve nearest to what was measured.

    Least squares over `sum_j c_j max(rate - rate_j, 0)` with c_j >= 0: through 0 at no pruning, and
    no slope below the one before. Nothing measured = pruning costs nothing.

    Args:
        rows: rates rising from 0.

    >>> rate, log_k = convex_rounds([PrunedRounds(0, 0), PrunedRounds(0.2, 0.3), PrunedRounds(0.4, 0.4)])
    >>> rate.tolist(), log_k.round(6).tolist()
    ([0.0, 0.2, 0.4], [0.0, 0.22, 0.44])
    """
    if len(rows) < 2:
        return np.zeros(1), np.zeros(1)
    from scipy.optimize import nnls

    rate = np.array([row.pruned for row in rows])
    hinges = np.maximum(rate[:, None] - rate[None, :-1], 0.0)
    slopes, _ = nnls(hinges, np.array([row.log_rounds for row in rows]))
    return rate, np.asarray(hinges @ slopes, np.float64)


def best_budget(
    rows: Sequence[PrunedRounds], round_s: Callable[[float], float], *, least: float, most: float
) -> float:
    """Return the budget with the least `K(Gamma) T(Gamma)`.

    Args:
        rows: what pruning was measured to cost.
        round_s: the least round time within a budget, in seconds; falls as the budget grows.
        least: the smallest budget that memory allows.
        most: the largest pruning rate that the method may use.

    Returns:
        A budget in [least, max(least, min(most, the largest budget measured))].
    """
    top = max(least, min(most, rows[-1].pruned))
    grid = np.union1d(np.linspace(least, top, _GRID), [row.pruned for row in rows])
    return _least_between(
        [float(point) for point in grid if least <= point <= top],
        lambda budget: rounds_ratio(rows, budget) * round_s(budget),
    )


def best_joint_budget(rows: Sequence[PrunedRounds], problem: JointProblem) -> float:
    """Return the budget with the least `K(Gamma) T(Gamma)` for the joint problem.

    The search goes over finish times instead of budgets: the least pruning that meets a T is one
    inner problem, while the least T within a budget is a whole solution.

    Args:
        rows: what pruning was measured to cost.
        problem: the joint problem; its own budget does not count.

    Returns:
        A budget between what memory forces and the largest one measured.
    """
    least = float(np.sum(problem.weight * (1.0 - problem.most_kept)))
    top = max(least, rows[-1].pruned)
    low_s, share = _division(problem, problem.least_kept)
    high_s, _ = _division(problem, problem.most_kept)
    if high_s <= low_s * (1.0 + _LOAD_TOLERANCE):
        return least
    blocks, total = prepare(problem), float(np.sum(problem.weight))
    price = first_price(problem, share, problem.least_kept, high_s)
    ratio = first_ratio(problem, share)
    budgets: dict[float, float] = {high_s: least}

    def budget_for(finish_s: float) -> float:
        nonlocal price, ratio
        if finish_s not in budgets:
            price, answer, _ = prices_at(
                problem, blocks, finish_s, price, ratio, tolerance=_LOAD_TOLERANCE
            )
            ratio = answer.log_ratio
            budgets[finish_s] = max(total - answer.value, least)
        return budgets[finish_s]

    def cost(finish_s: float) -> float:
        budget = budget_for(finish_s)
        return float("inf") if budget > top else rounds_ratio(rows, budget) * finish_s

    # Latest first: there the prices are easiest, and each search starts at the last answer.
    times = np.geomspace(high_s, low_s * (1.0 + 1e-9), _GRID).tolist()
    return budget_for(_least_between(times, cost))


def _division(problem: JointProblem, kept: Floats) -> tuple[float, Floats]:
    division = divide_min_max(
        problem.curves,
        problem.fixed_s + kept * problem.compute_s,
        problem.fixed_bits + kept * problem.bits,
    )
    return division.round_s, division.share


def _least_between(points: list[float], total: Callable[[float], float]) -> float:
    """Return the point with the least total, halving the steps about the best a few times."""
    known: dict[float, float] = {}

    def at(point: float) -> float:
        if point not in known:
            known[point] = total(point)
        return known[point]

    for _ in range(_REFINE):
        best = min(points, key=at)
        index = points.index(best)
        beside = points[max(index - 1, 0) : index + 2]
        halves = [0.5 * (one + other) for one, other in pairwise(beside)]
        points = sorted([*beside, *halves], reverse=points[0] > points[-1])
    return min(points, key=at)
