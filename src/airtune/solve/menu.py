"""The multiple-choice knapsack: every device picks one line of its menu, links have a capacity.

    minimise sum_i cost[i, c_i]    subject to    sum over group g of load[i, c_i] <= capacity_g

For any multipliers `m >= 0` the sum of `min_c (cost + m load)` less `m . capacity` is a bound that
no choice beats; bisection on ln m finds the best one for every group at once, and with it a choice
within the capacity that is near the bound. A greedy repair then spends what is left. Costs and
loads are any numbers: pruning against bandwidth here, bandwidth against distortion for a split.

Source: Lagrangian relaxation of the multiple-choice knapsack (Sinha and Zoltners, 1979).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.plan import Bools, Floats, Ints

_STEPS = 48
_MOST_REPAIRS = 24


@dataclass(frozen=True, slots=True)
class MenuChoice:
    """One line for every device, and how good any choice could be."""

    index: Ints
    """Chosen line of each device, shape (n,)."""
    cost: float
    """Sum of chosen costs; inf where no choice fits."""
    bound: float
    """No choice within the capacity costs less; inf proves that none fits."""
    multiplier: Floats
    """Cost per unit of load at the margin, shape (groups,)."""


def choose(
    cost: Floats, load: Floats, capacity: Floats, group: Ints, *, wanted: float = -np.inf
) -> MenuChoice:
    """Choose one line a device at the least cost that the capacities allow, within a stated bound.

    Args:
        cost: shape (n, k); the same unit for all.
        load: shape (n, k), at least 0; inf = this line cannot be had.
        capacity: shape (groups,).
        group: the group of each device, shape (n,).
        wanted: a cost that decides the matter: the search stops when a choice reaches it or when
            the bound proves that none can; -inf = go on to the best.

    Returns:
        The choice; `cost - bound` is what it can be away from the optimum.

    >>> menu = np.array([[0.0, 1.0], [0.0, 1.0]])
    >>> choose(menu, 1.0 - menu, np.array([1.0]), np.array([0, 0])).cost
    1.0
    """
    groups = capacity.shape[0]
    lightest = np.argmin(load, axis=1)
    floor = _sums(load, lightest, group, groups)
    if np.any(~(floor <= capacity)):
        return MenuChoice(lightest, np.inf, np.inf, np.zeros(groups))
    usable = np.where(np.isfinite(load), load, 0.0)
    price = np.where(np.isfinite(load), cost, np.inf)
    index, multiplier, bound = _bisect(price, usable, (capacity, group, wanted), lightest)
    if bound <= wanted or not np.isfinite(wanted):
        index = _repair(cost, load, (capacity, group, wanted), index)
    rows = np.arange(index.shape[0])
    return MenuChoice(index, float(np.sum(cost[rows, index])), bound, multiplier)


def lagrangian(
    cost: Floats, load: Floats, capacity: Floats, group: Ints, multiplier: Floats
) -> float:
    """Return the bound that these multipliers prove; inf where a device has no line at all."""
    usable = np.where(np.isfinite(load), load, 0.0)
    price = np.where(np.isfinite(load), cost, np.inf)
    best = np.min(price + multiplier[group][:, None] * usable, axis=1)
    return float(np.sum(best) - multiplier @ capacity)


def _sums(table: Floats, index: Ints, group: Ints, groups: int) -> Floats:
    chosen = table[np.arange(index.shape[0]), index]
    return np.bincount(group, chosen, minlength=groups).astype(np.float64)


def _bisect(
    price: Floats, usable: Floats, limits: tuple[Floats, Ints, float], lightest: Ints
) -> tuple[Ints, Floats, float]:
    """Return (a choice within capacity, multipliers, the best bound) by bisection on ln m."""
    capacity, group, wanted = limits
    groups = capacity.shape[0]
    free = np.argmin(price, axis=1)
    slack = _sums(usable, free, group, groups) <= capacity
    finite = np.where(np.isfinite(price), np.abs(price), 0.0)
    heaviest = float(np.max(usable))
    scale = max(float(np.max(finite)), 1e-300) / (heaviest if heaviest > 0.0 else 1.0)
    low = np.full(groups, np.log(scale) - 40.0)
    high = low + 100.0
    index, multiplier, bound = lightest, np.exp(high), -np.inf
    index = np.where(slack[group], free, index)
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        trial = np.where(slack, 0.0, np.exp(middle))
        total = price + trial[group][:, None] * usable
        pick = np.argmin(total, axis=1)
        rows = np.arange(pick.shape[0])
        value = float(np.sum(total[rows, pick]) - trial @ capacity)
        if value > bound:
            bound, multiplier = value, trial
        fits = _sums(usable, pick, group, groups) <= capacity
        index = np.where(fits[group], pick, index)
        low, high = np.where(fits, low, middle), np.where(fits, middle, high)
        decided = bound > wanted or (fits.all() and np.sum(price[rows, index]) <= wanted)
        if decided and np.isfinite(wanted):
            break
    return index, multiplier, bound


def _repair(cost: Floats, load: Floats, limits: tuple[Floats, Ints, float], index: Ints) -> Ints:
    """Spend what is left of the capacities on the moves that save most cost for their load.

    In each pass every device names its best move that fits; the best of these are made until a
    group is full.
    """
    capacity, group, wanted = limits
    rows, groups = np.arange(index.shape[0]), capacity.shape[0]
    index = index.copy()
    for _ in range(_MOST_REPAIRS):
        left = capacity - _sums(load, index, group, groups)
        saved = cost[rows, index][:, None] - cost
        extra = load - load[rows, index][:, None]
        fits = (saved > 0.0) & (extra <= left[group][:, None])
        if np.sum(cost[rows, index]) <= wanted or not fits.any():
            break
        worth = np.where(fits, saved / np.maximum(extra, 1e-300), -np.inf)
        line = np.argmax(worth, axis=1)
        order = np.argsort(-worth[rows, line], kind="stable")
        can_move = np.isfinite(worth[rows, line])
        order = order[can_move[order]]
        taken = _prefix(np.maximum(extra[order, line[order]], 0.0), group[order], left)
        index[order[taken]] = line[order[taken]]
    return index


def _prefix(extra: Floats, group: Ints, left: Floats) -> Bools:
    """Return which of the ordered moves come before their group is full; the first always does."""
    total, first = np.zeros(extra.shape[0]), np.zeros(extra.shape[0])
    for index in np.unique(group):
        members = np.flatnonzero(group == index)
        total[members] = np.cumsum(extra[members])
        first[members[0]] = 1.0
    return np.asarray((total <= left[group]) | (first > 0.0))
