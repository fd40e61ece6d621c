"""Which weighted mean pruning rate a method may spend: fixed, by quality, or the best of a calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from airtune.cost import most_pruned
from airtune.errors import RecipeError
from airtune.plan import Bools, Floats, Problem, PrunedRounds
from airtune.solve import rounds_ratio

Budget = Literal["auto"] | float
UNMEASURED_MOST = 0.7
"""Largest pruning rate of a device where nothing was measured."""


def check_budget(budget: Budget, quality_budget: float, max_prune: Budget) -> None:
    """Refuse settings that mean nothing.

    Raises:
        RecipeError: naming the setting, its value and its range.
    """
    if budget != "auto" and not (isinstance(budget, int | float) and 0.0 <= budget < 1.0):
        raise RecipeError(f"budget must be auto or in [0, 1), got {budget!r}")
    if not 0.0 <= quality_budget < 1.0:
        raise RecipeError(
            f"quality_budget is a relative loss increase in [0, 1), 0.02 for 2 %, got "
            f"{quality_budget:g}"
        )
    if max_prune != "auto" and not (isinstance(max_prune, int | float) and 0.0 <= max_prune < 1.0):
        raise RecipeError(f"max_prune must be auto or in [0, 1), got {max_prune!r}")


def most_of(problem: Problem, max_prune: Budget) -> float:
    """Return the largest pruning rate of a device: as set, or as far as was measured to be sound."""
    if max_prune != "auto":
        return float(max_prune)
    known = problem.measurements
    found = [known.most_pruned] if known is not None and known.pruning else []
    if problem.sensitivity is not None:
        found.append(most_pruned(problem.shape, problem.sensitivity))
    return min(found, default=UNMEASURED_MOST)


def least_budget(weight: Floats, pruned: Floats, allowed: Bools) -> float:
    """Return the weighted mean pruning rate that memory alone forces."""
    return float(np.sum(weight * pruned[np.argmax(allowed, axis=1)]))


def choose_budget(
    budget: Budget,
    quality_budget: float,
    measured: Sequence[PrunedRounds],
    *,
    least: float,
    search: Callable[[Sequence[PrunedRounds]], float],
) -> tuple[float, str]:
    """Return the budget of this round and, in a few words, where it came from.

    Args:
        budget: a fixed rate, or "auto".
        quality_budget: relative loss increase allowed at equal rounds; 0 = not used.
        measured: what pruning costs; empty = nothing was measured.
        least: the rate that memory forces, below which no budget can be.
        search: finds the rate that reaches the target soonest by what was measured.

    Raises:
        RecipeError: if a quality budget is asked for and nothing was measured.
    """
    if quality_budget > 0.0:
        if not measured:
            raise RecipeError(
                f"quality_budget {quality_budget:g} needs a calibration; run one, or set budget"
            )
        rate = within_quality(measured, quality_budget)
        return max(rate, least), f"quality budget {quality_budget:.1%}"
    if budget != "auto":
        return max(float(budget), least), "fixed budget"
    if not measured:
        return least, "pruning cost not measured, so pruned only if memory requires it"
    rate = search(measured)
    ratio = rounds_ratio(measured, rate) / rounds_ratio(measured, 0.0)
    return rate, f"calibrated, {ratio:.2f} times the rounds"


def within_quality(measured: Sequence[PrunedRounds], quality_budget: float) -> float:
    """Return the largest pruning rate whose measured loss increase stays within the budget.

    >>> measured = [PrunedRounds(rate, rate, rate / 10) for rate in (0.0, 0.2, 0.4)]
    >>> round(within_quality(measured, 0.03), 6)
    0.3
    """
    rate, loss = (np.array([getattr(row, name) for row in measured]) for name in ("pruned", "loss"))
    over = np.flatnonzero(loss > quality_budget)
    if not over.size:
        return float(rate[-1])
    index = int(over[0])
    if index == 0:
        return 0.0
    span = loss[index] - loss[index - 1]
    part = (quality_budget - loss[index - 1]) / span
    return float(rate[index - 1] + part * (rate[index] - rate[index - 1]))
