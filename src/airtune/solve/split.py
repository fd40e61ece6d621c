"""Cuts, codecs and spectrum together, with a proved bound: the large timescale of split training.

Every device picks one line of its menu, a cut with a codec; a step then takes

    max_i (forward_i + bits_i / R_i(z_i))  +  sum_i server_i  +  max_g (down_g + max_{i in g} backward_i)

where the shares z of a link sum to its budget, gradients of a link come down together, so that
`down_g` is a sum over its devices, and what compression costs in quality is limited by
`sum_i loss_i <= loss_budget`. A dedicated link is a group of its own kind: each device receives
alone, and what it takes is part of its backward time.

For a time A of sending and a limit B on the backward phase everything separates by prices: of the
links' shares (lambda), of quality (mu), and weights rho of the groups. The least over B is found
exactly by sorting. The choice is improved by a fixed point on the prices; the bound needs no trust
in it: with the prices held, the dual is bounded from below over intervals of A. The share a line
needs is convex in A, so its tangent stays below it, and a minimum of straight lines is concave:
the ends of an interval bound all of it. Intervals are halved where the bound is loose.

Source: two-timescale allocation of Split Fine-Tuning for Large Language Models in Wireless Networks
(arXiv 2501.09237); the certified search is this project's.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from airtune.plan import Floats, Ints
from airtune.solve.menu import choose
from airtune.solve.split_bound import cut_of, highest, lower_bound
from airtune.solve.split_exact import best_of_all
from airtune.solve.split_exchange import exchange
from airtune.solve.split_menu import Prices, SplitMenu
from airtune.solve.split_problem import (
    SLACK,
    SplitProblem,
    SplitSolution,
    first_choice,
    sent_s_of,
    solution_of,
)

__all__ = ["SplitProblem", "SplitSolution", "solve_split"]

_ROUNDS = 30
"""Of the fixed point on prices."""
_PRICE_STEPS = 40
_ENOUGH = 10.0
"""Gap, in tolerances, that is good enough not to refine the prices."""
_REFINEMENTS = 2
_CUT_ROUNDS = 8
_TRIED_EVERY = 4
"""Rounds of cutting planes between answers sought at every open A, for few devices."""
_LARGE = 30_000
"""Devices times lines from which a refinement takes fewer rounds."""
_EXCHANGE_UP_TO = 128
"""Devices up to which exchanges are tried; beyond, one device's line hardly counts."""
_EVERY_TRIAL_UP_TO = 32
_NEAR = 1.1
"""Relative distance up to which an answer is worth exchanges."""


def solve_split(problem: SplitProblem, *, tolerance: float = 5e-5) -> SplitSolution:
    """Choose a line for every device and divide the uplinks, within a certified bound.

    Args:
        problem: The menus.
        tolerance: Gap at which the search for a better bound stops.

    Returns:
        The answer; its `gap` is proved, whatever the search did. `status` is "stalled" where the
        bound is further away than ten tolerances: an answer as good as its gap, and no failure.
    """
    menu = SplitMenu.of(problem)
    found, prices, steps = _improve(menu)
    if len(problem) <= _EXCHANGE_UP_TO:
        found = exchange(menu, found, prices)
    if len(problem) <= _EVERY_TRIAL_UP_TO and (exact := best_of_all(problem, found)):
        return replace(exact, iterations=steps)
    bound, left, intervals = lower_bound(menu, prices, found.step_s, tolerance)
    for _ in range(_REFINEMENTS):
        if found.step_s <= bound * (1.0 + _ENOUGH * tolerance):
            break
        found, prices = _refined(menu, prices, found, left)
        if len(problem) <= _EXCHANGE_UP_TO:
            found = exchange(menu, found, prices)
        again, left, more = lower_bound(menu, prices, found.step_s, tolerance)
        bound, intervals = max(bound, again), intervals + more
    return replace(
        found,
        bound_s=float(min(bound, found.step_s)),
        iterations=steps + intervals,
        status="optimal" if found.step_s <= bound * (1.0 + _ENOUGH * tolerance) else "stalled",
    )


def _improve(menu: SplitMenu) -> tuple[SplitSolution, Prices, int]:
    """Return the best choice of a fixed point on the prices, and the prices there."""
    problem = menu.problem
    links = problem.curves.budget.shape[0]
    index = first_choice(problem)
    prices = Prices(np.ones(links), 0.0, np.full(menu.groups, 1.0 / menu.groups))
    best, best_prices, seen = solution_of(problem, index), prices, set()
    current, steps = best, 0
    for _ in range(_ROUNDS):
        steps += 1
        prices = _updated(menu, current, prices)
        share = menu.shares(sent_s_of(problem, current))
        index, prices = _respond(menu, share, prices)
        current = solution_of(problem, index)
        if current.step_s < best.step_s:
            best, best_prices = current, prices
        key = index.tobytes()
        if key in seen:
            break
        seen.add(key)
    best_prices = _updated(menu, best, best_prices)
    sent_s = sent_s_of(problem, best)
    _, best_prices = _respond(menu, menu.shares(sent_s), best_prices)
    return best, best_prices, steps


def _updated(menu: SplitMenu, found: SplitSolution, prices: Prices) -> Prices:
    """Return prices moved towards those that this choice would have.

    A link that is done early is cheaper, a group that is done early weighs less; together the
    links' prices must be worth one second of A, the groups' weights one second of B.
    """
    problem, rows = menu.problem, np.arange(len(menu.problem))
    curves, index = problem.curves, found.index
    left = problem.bits[rows, index] / curves.rate(found.share)
    ends = problem.forward_s[rows, index] + left
    slope = problem.bits[rows, index] / (left**2 * curves.slope(found.share))
    link_end, pace = np.zeros(curves.budget.shape[0]), curves.load(slope)
    np.maximum.at(link_end, curves.link[~curves.dedicated], ends[~curves.dedicated])
    last = float(np.max(ends))
    weight = np.where(pace > 0.0, prices.link * pace, 0.0)
    total = float(np.sum(weight))
    weight = weight / total if total > 0.0 else weight
    weight = weight * (link_end / last) ** 2
    total = float(np.sum(weight))
    link = np.where(pace > 0.0, weight / np.where(pace > 0.0, pace, 1.0), 0.0)
    back = _group_ends(menu, index)
    last_back = max(float(np.max(back)), 1e-300)
    group = prices.group * np.maximum(back / last_back, 1e-3) ** 2
    return replace(prices, link=link / total if total > 0.0 else link, group=group / np.sum(group))


def _group_ends(menu: SplitMenu, index: Ints) -> Floats:
    """Return when each group is done after the server, shape (groups,)."""
    problem, rows = menu.problem, np.arange(len(menu.problem))
    alone = problem.curves.dedicated
    down = problem.down_s[rows, index]
    shared = np.bincount(menu.group, np.where(alone, 0.0, down), minlength=menu.groups)
    own = problem.backward_s[rows, index] + np.where(alone, down, shared[menu.group])
    ends = np.zeros(menu.groups)
    np.maximum.at(ends, menu.group, own)
    return ends


def _respond(menu: SplitMenu, share: Floats, prices: Prices) -> tuple[Ints, Prices]:
    """Return the cheapest choice within the loss budget at these prices, and the price of loss."""
    base = menu.priced(share, prices)
    budget = menu.problem.loss_budget + SLACK
    rows = np.arange(len(menu.problem))

    def at(price: float) -> tuple[Floats, Ints, float]:
        _, limit = menu.best(base + price * menu.loss, prices)
        pick = menu.pick(base + price * menu.loss, limit)
        return limit, pick, float(np.sum(menu.loss[rows, pick]))

    limit, pick, load = at(0.0)
    if load <= budget:
        return menu.original(pick), replace(prices, loss=0.0)
    scale = max(float(np.max(menu.loss)), 1e-300)
    low, high = (
        0.0,
        prices.loss or float(np.sum(menu.server_s[:, 0]) + np.max(base[np.isfinite(base)])) / scale,
    )
    for _ in range(_PRICE_STEPS):
        limit, pick, load = at(high)
        if load <= budget:
            break
        low, high = high, 4.0 * high
    for _ in range(_PRICE_STEPS):
        if high - low <= 1e-5 * high:
            break
        middle = 0.5 * (low + high) if low else 0.25 * high
        trial_limit, trial, trial_load = at(middle)
        if trial_load <= budget:
            high, limit, pick, load = middle, trial_limit, trial, trial_load
        else:
            low = middle
    if load > budget:
        return first_choice(menu.problem), replace(prices, loss=high)
    within = menu.after_s <= limit[menu.group][:, None]
    table = np.where(within & np.isfinite(base), menu.loss, np.inf)
    everyone = np.zeros(len(menu.problem), np.int64)
    spent = choose(np.where(np.isfinite(base), base, 1e300), table, np.array([budget]), everyone)
    if np.sum(base[rows, spent.index]) < np.sum(base[rows, pick]):
        pick = spent.index
    return menu.original(pick), replace(prices, loss=high)


def _refined(
    menu: SplitMenu, prices: Prices, found: SplitSolution, left: list[float]
) -> tuple[SplitSolution, Prices]:
    """Return prices with a better dual, and the best choice met on the way.

    Any choice at any A bounds the dual from above by a line in the prices; a linear programme takes
    the prices at which the least of these lines is highest.
    """
    tables = {sent_s: menu.shares(sent_s) for sent_s in left}
    unit = np.concatenate(
        [
            np.maximum(prices.link, 0.05 * np.max(prices.link)),
            [max(prices.loss, 1e-9)],
            np.ones(menu.groups),
        ]
    )
    cuts: list[Floats] = []
    best, best_value = prices, -np.inf
    few = len(menu.problem) <= _EVERY_TRIAL_UP_TO
    for number in range(_CUT_ROUNDS if menu.bits.size <= _LARGE else _CUT_ROUNDS // 3):
        lowest, at = np.inf, left[0]
        for sent_s, share in tables.items():
            value, cut = cut_of(menu, prices, sent_s, share)
            if np.isfinite(value):
                cuts.append(cut)
            if value < lowest:
                lowest, at = value, sent_s
        if best_value < lowest < np.inf:
            best, best_value = prices, lowest
        for sent_s in tables if few and number % _TRIED_EVERY == 0 else [at]:
            found = _tried(menu, tables[sent_s], prices, found)
        fresh = highest(menu, cuts, unit, best) if cuts else None
        if fresh is None:
            break
        prices = fresh
    return found, best


def _tried(menu: SplitMenu, share: Floats, prices: Prices, found: SplitSolution) -> SplitSolution:
    """Return the better of an answer and of what these prices make of these shares."""
    index, _ = _respond(menu, share, prices)
    trial = solution_of(menu.problem, index)
    if len(menu.problem) <= _EVERY_TRIAL_UP_TO and trial.step_s < _NEAR * found.step_s:
        trial = exchange(menu, trial, prices)
    return trial if trial.step_s < found.step_s else found
