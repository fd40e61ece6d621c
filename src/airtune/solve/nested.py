"""The slow and safe search of the joint problem: finish time outside, one price a link inside.

For a fixed T each link's price is a root of `load(price) = budget`, found on all links at once by
Newton's method in ln(price) inside a shrinking bracket. Outside, T is found by Newton's method on
the value function V(T), whose derivative the envelope theorem gives, again inside a bracket. It
needs no interior device, which the two-dimensional search does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.plan import Floats
from airtune.solve.bandwidth import Division
from airtune.solve.problem import JointProblem
from airtune.solve.response import Columns, Response, first_price, first_ratio, respond

_MOST_OUTER = 80
_MOST_INNER = 80
_TOLERANCE = 1e-11
_LOG_PRICE_RANGE = 120.0


@dataclass(frozen=True, slots=True)
class Found:
    """Where the nested search ended; `price` is 0 on links that do not bind."""

    finish_s: float
    price: Floats
    response: Response
    iterations: int


def nested_search(
    problem: JointProblem,
    blocks: list[Columns],
    least: Division,
    start: tuple[Floats, Floats, float],
) -> Found:
    """Return the least finish time whose best weighted kept fraction meets the budget.

    Args:
        problem: the joint problem.
        blocks: its prepared columns.
        least: the division with every device at its least kept fraction; no T below it is possible.
        start: shares, kept fractions and finish time of a feasible answer.
    """
    needed = problem.least_value
    share, kept, high = start
    low = least.round_s * (1.0 + 1e-12)
    high = max(high, low * (1.0 + 1e-12))
    price, ratio = first_price(problem, share, kept, high), first_ratio(problem, share)
    steps, finish_s = 0, low
    for _ in range(_MOST_OUTER):
        price, answer, inner = _prices(problem, blocks, finish_s, price, ratio)
        steps, ratio = steps + inner, answer.log_ratio
        binding = _binding(problem, answer)
        excess = np.where(binding, answer.load - problem.curves.budget, 0.0)
        short = answer.value - float(price @ excess) - needed
        if short >= 0.0:
            high = min(high, finish_s)
        else:
            low = max(low, finish_s)
        if abs(short) <= _TOLERANCE * needed or high <= low * (1.0 + 1e-14):
            break
        guess = finish_s * float(np.exp(-short / max(answer.value_by_time, 1e-300)))
        finish_s = guess if low < guess < high else 0.5 * (low + high)
    return Found(finish_s, np.where(binding, price, 0.0), answer, steps)


def _binding(problem: JointProblem, answer: Response) -> np.ndarray:
    """Return the links whose budget limits somebody, shape (links,)."""
    budget = problem.curves.budget
    return (answer.load > 0.0) & (answer.unmet | (answer.load > budget))


def _prices(
    problem: JointProblem, blocks: list[Columns], finish_s: float, price: Floats, ratio: Floats
) -> tuple[Floats, Response, int]:
    """Return the prices at which every link's load meets its budget, and the answers to them."""
    budget = problem.curves.budget
    log_price = np.log(price)
    low, high = log_price - _LOG_PRICE_RANGE, log_price + _LOG_PRICE_RANGE
    for step in range(1, _MOST_INNER + 1):
        answer = respond(problem, blocks, finish_s, np.exp(log_price), ratio)
        ratio = answer.log_ratio
        over = answer.load - budget
        open_links = _binding(problem, answer) & (np.abs(over) > _TOLERANCE * budget)
        open_links &= high - low > 1e-13 * np.maximum(np.abs(log_price), 1.0)
        if not open_links.any():
            break
        low = np.where(open_links & (over > 0.0), log_price, low)
        high = np.where(open_links & (over < 0.0), log_price, high)
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = log_price - np.log(answer.load / budget) * answer.load / answer.load_by_price
        inside = np.isfinite(newton) & (newton > low) & (newton < high)
        near = np.clip(0.5 * (low + high), log_price - 8.0, log_price + 8.0)
        log_price = np.where(open_links, np.where(inside, newton, near), log_price)
    return np.exp(log_price), answer, step
