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

from collections.abc import Callable

import numpy as np

from airtune.plan import Calibration

_GRID = 9
_REFINE = 4


def rounds_ratio(calibration: Calibration, pruned: float) -> float:
    """Return K at a weighted mean pruning rate: linear between the measured points.

    Beyond the last point the last slope goes on; nothing is assumed to get cheaper.
    """
    budget, ratio = calibration.budget, calibration.rounds_ratio
    if pruned <= budget[-1] or budget.shape[0] < 2:
        return float(np.interp(pruned, budget, ratio))
    slope = (ratio[-1] - ratio[-2]) / (budget[-1] - budget[-2])
    return float(ratio[-1] + slope * (pruned - budget[-1]))


def best_budget(
    calibration: Calibration, round_s: Callable[[float], float], *, least: float, most: float
) -> float:
    """Return the budget with the least `K(Gamma) T(Gamma)`.

    Args:
        calibration: measured ratios of rounds.
        round_s: the least round time within a budget, in seconds; falls as the budget grows.
        least: the smallest budget that memory allows.
        most: the largest pruning rate that the method may use.

    Returns:
        A budget in [least, max(least, min(most, the largest budget measured))].
    """
    top = max(least, min(most, float(calibration.budget[-1])))
    known: dict[float, float] = {}

    def total(budget: float) -> float:
        if budget not in known:
            known[budget] = rounds_ratio(calibration, budget) * round_s(budget)
        return known[budget]

    grid = np.union1d(np.linspace(least, top, _GRID), calibration.budget)
    points = [float(point) for point in grid if least <= point <= top]
    for _ in range(_REFINE):
        best = min(points, key=total)
        place = points.index(best)
        beside = points[max(place - 1, 0) : place + 2]
        points = sorted({*beside, *(0.5 * (a + b) for a, b in zip(beside, beside[1:], strict=False))})
    return min(points, key=total)
