"""The slow and safe search of the joint problem: finish time outside, one price a link inside.

For a fixed T each link's price is a root of `load(price) = budget`. The load falls with the price,
but where devices are bound by transmission it falls in steps, each device going from the most it
may keep to the least; derivatives then say little, and a bracketing secant (Illinois) on all links
at once is used. Outside, T is found by Newton's method on the value function V(T), whose derivative
the envelope theorem gives, inside a shrinking bracket.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.plan import Bools, Floats
from airtune.solve.bandwidth import Division
from airtune.solve.problem import JointProblem
from airtune.solve.response import BestResponse, Columns, first_price, first_ratio, respond

_MOST_OUTER = 120
_MOST_INNER = 120
_TOLERANCE = 1e-11
_ROUGH = 1e-3
_LOG_PRICE_RANGE = 120.0
_FIRST_STEP = 0.25


@dataclass(frozen=True, slots=True)
class Found:
    """Where the nested search ended; `price` is 0 on links that do not bind."""

    finish_s: float
    price: Floats
    response: BestResponse
    iterations: int


def nested_search(
    problem: JointProblem,
    blocks: list[Columns],
    least: Division,
    start: tuple[Floats, Floats, float],
    *,
    tolerance: float = _TOLERANCE,
) -> Found:
    """Return the least finish time whose best weighted kept fraction meets the budget.

    Args:
        problem: the joint problem.
        blocks: its prepared columns.
        least: the division with every device at its least kept fraction; no T below it is possible.
        start: shares, kept fractions and finish time of a feasible answer.
        tolerance: how exactly the links and the pruning budget are met in the end, relative.
    """
    needed = problem.least_value
    share, kept, high = start
    low = least.round_s * (1.0 + 1e-12)
    high = max(high, low * (1.0 + 1e-12))
    price, ratio = first_price(problem, share, kept, high), first_ratio(problem, share)
    steps, finish_s, rough, width = 0, high, _ROUGH, np.inf
    for _ in range(_MOST_OUTER):
        price, answer, inner = prices_at(problem, blocks, finish_s, price, ratio, tolerance=rough)
        steps, ratio = steps + inner, answer.log_ratio
        binding = binding_links(problem, answer) & ~full_links(problem, finish_s)
        excess = np.where(binding, answer.load - problem.curves.budget, 0.0)
        doubt = float(price @ np.abs(excess))
        short = answer.value - float(price @ excess) - needed
        exact = rough <= tolerance
        if short < 0.0:
            low = max(low, finish_s)  # the dual proves it whatever the prices
        elif exact or short > 20.0 * doubt:
            high = min(high, finish_s)
        closed = abs(short) <= tolerance * needed or high <= low * (1.0 + 1e-14)
        if closed and exact:
            break
        next_rough = 0.05 * abs(short) / needed
        rough = tolerance if closed else max(tolerance, min(next_rough, 0.1 * rough))
        slope = max(answer.dual_by_time(np.where(binding, price, 0.0)), 1e-300)
        guess = finish_s * float(np.exp(max(-short / slope, -600.0)))
        # Newton's step is kept while it shrinks the bracket; a stale price can make it crawl.
        crawling = high - low > 0.5 * width and abs(guess - finish_s) < 0.01 * (high - low)
        width = high - low
        finish_s = guess if low < guess < high and not crawling else 0.5 * (low + high)
    return Found(finish_s, np.where(binding, price, 0.0), answer, steps)


def binding_links(problem: JointProblem, answer: BestResponse) -> Bools:
    """Return the links whose budget limits somebody, shape (links,)."""
    budget = problem.curves.budget
    return (answer.load > 0.0) & (answer.unmet | (answer.load > budget))


def full_links(problem: JointProblem, finish_s: float) -> Bools:
    """Return the links that T fills with every device at its least kept fraction, shape (links,)."""
    left_s = finish_s - problem.fixed_s - problem.least_kept * problem.compute_s
    rate = (problem.fixed_bits + problem.least_kept * problem.bits) / left_s
    load = problem.curves.load(problem.curves.share_for(rate))
    return np.asarray(load >= problem.curves.budget * (1.0 - 1e-10))


@dataclass(slots=True)
class _Bracket:
    """Prices in logarithms with ln(load / budget) at them; the root is between."""

    low: Floats
    high: Floats
    low_value: Floats
    high_value: Floats
    step: Floats
    last: Floats
    """Side moved last: 1 low, -1 high; twice the same side halves the other's value (Illinois)."""


def prices_at(
    problem: JointProblem,
    blocks: list[Columns],
    finish_s: float,
    price: Floats,
    ratio: Floats,
    *,
    tolerance: float = _TOLERANCE,
) -> tuple[Floats, BestResponse, int]:
    """Return the prices at which every link's load meets its budget, and the answers to them.

    Args:
        problem: the joint problem.
        blocks: its prepared columns.
        finish_s: T in seconds, at least the least possible.
        price: where to start, shape (links,), positive.
        ratio: ln u of the last response, shape (n,).
        tolerance: how exactly the loads must meet the budgets, relative.
    """
    budget = problem.curves.budget
    full = full_links(problem, finish_s)
    start = np.log(price)
    log_price = np.where(full, start + _LOG_PRICE_RANGE, start)
    links = budget.shape[0]
    bracket = _Bracket(
        low=np.full(links, -np.inf),
        high=np.full(links, np.inf),
        low_value=np.zeros(links),
        high_value=np.zeros(links),
        step=np.full(links, _FIRST_STEP),
        last=np.zeros(links),
    )
    steps = 0
    while steps < _MOST_INNER:
        steps += 1
        answer = respond(problem, blocks, finish_s, np.exp(log_price), ratio)
        ratio = answer.log_ratio
        over = answer.load - budget
        open_links = binding_links(problem, answer) & ~full & (np.abs(over) > tolerance * budget)
        open_links &= np.abs(log_price - start) < _LOG_PRICE_RANGE
        open_links &= bracket.high - bracket.low > 1e-14 * np.maximum(np.abs(log_price), 1.0)
        if not open_links.any():
            break
        value = np.log(np.where(open_links, answer.load / budget, 1.0))
        fresh = _advance(bracket, log_price, value, answer, open_links)
        log_price = np.where(open_links, fresh, log_price)
    return np.exp(np.where(full, start, log_price)), answer, steps


def _advance(
    bracket: _Bracket, log_price: Floats, value: Floats, answer: BestResponse, open_links: Bools
) -> Floats:
    """Take the new values into the bracket and return the next prices in logarithms."""
    over, under = open_links & (value > 0.0), open_links & (value < 0.0)
    bracket.high_value = np.where(
        over & (bracket.last > 0), 0.5 * bracket.high_value, bracket.high_value
    )
    bracket.low_value = np.where(
        under & (bracket.last < 0), 0.5 * bracket.low_value, bracket.low_value
    )
    bracket.low = np.where(over, log_price, bracket.low)
    bracket.low_value = np.where(over, value, bracket.low_value)
    bracket.high = np.where(under, log_price, bracket.high)
    bracket.high_value = np.where(under, value, bracket.high_value)
    bracket.last = np.where(over, 1.0, np.where(under, -1.0, bracket.last))
    both = np.isfinite(bracket.low) & np.isfinite(bracket.high)
    walk = log_price + np.sign(value) * bracket.step
    with np.errstate(divide="ignore", invalid="ignore"):
        middle = np.where(both, 0.5 * (bracket.low + bracket.high), walk)
        newton = log_price - value * answer.load / answer.load_by_price
        secant = bracket.low + (bracket.high - bracket.low) * bracket.low_value / (
            bracket.low_value - bracket.high_value
        )
    near = np.abs(newton - log_price) <= bracket.step
    good = np.isfinite(newton) & near & (newton > bracket.low) & (newton < bracket.high)
    inside = np.isfinite(secant) & (secant > bracket.low) & (secant < bracket.high)
    # Without a bracket the price walks, ever faster, the way the load asks.
    bracket.step = np.where(both | good, bracket.step, 2.0 * bracket.step)
    return np.where(good & (np.abs(value) < 0.05), newton, np.where(both & inside, secant, middle))
