"""Whole heads and channels: the joint problem on a ladder of pruning levels, with a proved gap.

At a finish time T every device has a menu: each level of the ladder costs it its weight times the
pruned fraction, and asks for the share of the link that meets T with that level's exact bytes and
FLOPs. The least pruning within the links is a multiple-choice knapsack (`menu.py`), so T is found
by bisection: a T whose bound exceeds the pruning budget is proved impossible, a T with a choice
inside the budget is possible. The shares are then divided anew for the levels chosen.

Large fleets search a window of levels about the continuous answer; the bound is always checked
against every level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.errors import InfeasibleError
from airtune.plan import Bools, Floats, Ints
from airtune.solve.bandwidth import divide_min_max
from airtune.solve.menu import MenuChoice, choose, lagrangian
from airtune.solve.problem import SLACK
from airtune.solve.rates import Curves

_FULL_MENU = 40_000
"""Devices times levels up to which the search looks at every level."""
_WINDOW = 7
_PRECISION = 1e-5
"""Relative precision of the search for T, far below a step of the ladder."""


@dataclass(frozen=True, slots=True)
class LadderProblem:
    """The joint problem with its exact costs at every level of a ladder."""

    curves: Curves
    fixed_s: Floats
    """Seconds before the computation, shape (n,)."""
    compute_s: Floats
    """Seconds of computation, shape (n, levels)."""
    bits: Floats
    """Payload at each level, shape (levels,)."""
    pruned: Floats
    """Fraction removed at each level, rising strictly, shape (levels,)."""
    allowed: Bools
    """Whether a device may use a level (memory, the method's limits), shape (n, levels)."""
    weight: Floats
    prune_budget: float
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        none = ~self.allowed.any(axis=1)
        if none.any():
            row = int(np.flatnonzero(none)[0])
            raise InfeasibleError(
                f"no pruning level of this model is allowed on {self.name(row)}: its memory is "
                "too small for the heaviest pruning that the method may use; raise max_prune, "
                "shorten the sequences or leave the device out"
            )
        forced = self.weight * self.pruned[np.argmax(self.allowed, axis=1)]
        least = float(np.sum(forced))
        if self.prune_budget < least - SLACK:
            row = int(np.argmax(forced))
            raise InfeasibleError(
                f"the pruning budget is {self.prune_budget:.4g}, but memory forces a weighted "
                f"mean of at least {least:.4g}; {self.name(row)} alone adds {forced[row]:.4g}: "
                "raise the budget or leave that device out"
            )

    def name(self, row: int) -> str:
        """Return what to call the device in this row."""
        return f"device {self.names[row]}" if self.names else f"device {row}"


@dataclass(frozen=True, slots=True)
class Rounded:
    """Levels and shares, and the certified distance to the best there is on this ladder."""

    level: Ints
    share: Floats
    finish_s: Floats
    round_s: float
    bound_s: float
    mean_pruned: float
    iterations: int

    @property
    def gap(self) -> float:
        """Relative distance of `round_s` from the certified bound of the discrete problem."""
        return self.round_s / self.bound_s - 1.0


def round_to_ladder(problem: LadderProblem, near_s: float, kept: Floats) -> Rounded:
    """Return the levels and shares with the least finish time that the search can find and bound.

    Args:
        problem: exact costs on the ladder.
        near_s: a finish time near the answer, usually the continuous optimum's, in seconds.
        kept: kept fractions near the answer, shape (n,): where the windows are put.
    """
    search = _Search.about(problem, kept)
    low_s, high_s, best, steps = _bracket(search, near_s)
    bound_s = low_s
    proving = True
    # First the bound is raised as far as the dual goes, then the answer lowered towards it.
    for floor in (True, False):
        low = bound_s
        top = high_s
        proving = floor
        while top > low * (1.0 + _PRECISION):
            steps += 1
            trial_s = float(np.sqrt(low * top))
            found = search.at(trial_s)
            if found.cost <= problem.prune_budget + SLACK:
                high_s, best = min(high_s, trial_s), found
            if found.bound > problem.prune_budget + SLACK:
                bound_s = max(bound_s, trial_s)
                low = trial_s
            elif proving or found.cost <= problem.prune_budget + SLACK:
                top = trial_s
            else:
                low = trial_s
    bound_s, extra = _check_bound(search, bound_s)
    spare = search.at(high_s, least=True)
    best = spare if spare.cost < best.cost else best
    return _finish(problem, search.levels(best.index), bound_s, steps + extra)


@dataclass(frozen=True, slots=True)
class _Search:
    """A ladder problem with, for each device, the levels that the search looks at."""

    problem: LadderProblem
    window: Ints
    """Shape (n, k): levels of the ladder."""

    @classmethod
    def about(cls, problem: LadderProblem, kept: Floats) -> _Search:
        count, levels = problem.allowed.shape
        if count * levels <= _FULL_MENU or levels <= _WINDOW:
            return cls(problem, np.broadcast_to(np.arange(levels), (count, levels)))
        nearest = np.searchsorted(problem.pruned, 1.0 - kept)
        lightest = np.argmax(problem.allowed, axis=1)
        heaviest = levels - 1 - np.argmax(problem.allowed[:, ::-1], axis=1)
        first = np.clip(nearest - _WINDOW // 2, 0, levels - _WINDOW)
        near = first[:, None] + np.arange(_WINDOW)
        # Links in air time push devices from one end to the other, so both ends are always there.
        return cls(problem, np.column_stack([lightest, near, heaviest]))

    def levels(self, index: Ints) -> Ints:
        """Return the ladder's levels of the chosen lines."""
        return self.window[np.arange(index.shape[0]), index]

    def at(self, finish_s: float, *, least: bool = False) -> MenuChoice:
        """Return a choice that meets a finish time within the budget, or the proof of none.

        With `least`, go on to the least pruning that meets it.
        """
        cost, load = _menu(self.problem, self.window, finish_s)
        curves = self.problem.curves
        wanted = -np.inf if least else self.problem.prune_budget + SLACK
        return choose(cost, load, curves.budget, curves.link, wanted=wanted)


def _menu(problem: LadderProblem, window: Ints, finish_s: float) -> tuple[Floats, Floats]:
    """Return cost and share, shape (n, k), of the levels in a window at a finish time."""
    count, lines = window.shape
    rows = np.arange(count)[:, None]
    left_s = finish_s - problem.fixed_s[:, None] - problem.compute_s[rows, window]
    possible = (left_s > 0.0) & problem.allowed[rows, window]
    rate = problem.bits[window] / np.where(possible, left_s, 1.0)
    flat = problem.curves.take(np.repeat(np.arange(count), lines))
    share = flat.share_for(rate.ravel()).reshape(window.shape)
    alone = problem.curves.dedicated[:, None]
    share = np.where(alone, np.where(share <= 1.0, 0.0, np.inf), share)
    share = np.where(possible & (share <= problem.curves.most()[:, None]), share, np.inf)
    return problem.weight[:, None] * problem.pruned[window], share


def _bracket(search: _Search, near_s: float) -> tuple[float, float, MenuChoice, int]:
    """Return (proved impossible, possible, the choice there, steps) about a finish time."""
    budget = search.problem.prune_budget + SLACK
    step, steps = 1e-3, 0
    high_s, found = near_s, search.at(near_s)
    while found.cost > budget and steps < 80:
        steps, step = steps + 1, step * 2.0
        high_s = near_s * (1.0 + step)
        found = search.at(high_s)
    best, low_s, step = found, near_s, 1e-4
    while steps < 160 and search.at(low_s).bound <= budget:
        steps, step = steps + 1, step * 3.0
        low_s = near_s / (1.0 + step)
    return low_s, high_s, best, steps


def _check_bound(search: _Search, bound_s: float) -> tuple[float, int]:
    """Prove the bound with every level in the menu, lowering it until the proof holds."""
    problem = search.problem
    levels = problem.allowed.shape[1]
    if search.window.shape[1] == levels:
        return bound_s, 0
    everything = np.broadcast_to(np.arange(levels), problem.allowed.shape)
    curves = problem.curves
    step = 0.0
    for tries in range(1, 30):
        trial_s = bound_s / (1.0 + step)
        multiplier = search.at(trial_s).multiplier
        cost, load = _menu(problem, everything, trial_s)
        proved = lagrangian(cost, load, curves.budget, curves.link, multiplier)
        if proved > problem.prune_budget + SLACK:
            return trial_s, tries
        step = max(2e-5, 3.0 * step)
    return 0.0, tries


def _finish(problem: LadderProblem, level: Ints, bound_s: float, steps: int) -> Rounded:
    """Divide the links anew for the levels chosen."""
    rows = np.arange(level.shape[0])
    division = divide_min_max(
        problem.curves, problem.fixed_s + problem.compute_s[rows, level], problem.bits[level]
    )
    return Rounded(
        level=level,
        share=division.share,
        finish_s=division.finish_s,
        round_s=division.round_s,
        bound_s=min(bound_s, division.round_s),
        mean_pruned=float(np.sum(problem.weight * problem.pruned[level])),
        iterations=steps,
    )
