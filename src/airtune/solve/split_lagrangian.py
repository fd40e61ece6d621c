"""Cuts and codecs by an augmented Lagrangian on the relaxed problem, then rounding.

Each device mixes the lines of its menu with fractions p; at equal shares a step is

    smooth max_i (forward_i + bits_i / R_i) + sum server + smooth max_i (down + backward_i)

in the means over p, and the loss of quality a constraint with multiplier m and penalty r:
`max(0, m + r g)^2 / (2 r)`, `g = sum loss / budget - 1`. Exponentiated gradient steps keep p in its
simplex; after each descent `m = max(0, m + r g)`. Rounding takes each device's largest fraction,
swaps lines until the budget holds, and divides the spectrum exactly.

Source: Split Fine-Tuning for Large Language Models in Wireless Networks (arXiv 2501.09237) names the
method; relaxation, penalty and rounding are reconstructed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from airtune.plan import Floats, Ints
from airtune.solve.menu import choose
from airtune.solve.split_problem import SLACK, SplitProblem, SplitSolution, solution_of

_OUTER, _INNER = 12, 60
_SHARPNESS = 30.0
"""Of the smooth maximum: its excess is at most ln(n) / this, relative."""


def solve_split_lagrangian(problem: SplitProblem) -> SplitSolution:
    """Choose lines by descent on the relaxed problem and rounding; nothing is certified.

    Returns:
        A feasible answer with an exact division of the spectrum; `bound_s` is NaN.
    """
    rate = problem.curves.rate(problem.curves.equal_shares())[:, None]
    sent = problem.forward_s + problem.bits / rate
    mixture = problem.allowed / problem.allowed.sum(axis=1, keepdims=True)
    multiplier, penalty = 0.0, 1.0
    for _ in range(_OUTER):
        for step in range(_INNER):
            slope, excess = _gradient(problem, sent, mixture, multiplier, penalty)
            rise = slope - np.min(slope, axis=1, keepdims=True)
            rise = rise / max(float(np.max(rise[problem.allowed])), 1e-300)
            mixture = np.where(
                problem.allowed, mixture * np.exp(-rise * 8.0 / (1.0 + 0.1 * step)), 0.0
            )
            mixture = mixture / mixture.sum(axis=1, keepdims=True)
        multiplier = max(0.0, multiplier + penalty * excess)
        penalty *= 1.5
    found = solution_of(problem, _rounded(problem, mixture))
    return replace(
        found, bound_s=float("nan"), iterations=_OUTER * _INNER, method="augmented Lagrangian"
    )


def _gradient(
    problem: SplitProblem, sent: Floats, mixture: Floats, multiplier: float, penalty: float
) -> tuple[Floats, float]:
    """Return the slope by every fraction, in units of the step's time, and the loss's excess."""
    alone, links = problem.curves.dedicated, problem.curves.budget.shape[0]
    arrive = np.sum(mixture * sent, axis=1)
    down = np.sum(mixture * problem.down_s, axis=1)
    total = np.bincount(problem.curves.link, np.where(alone, 0.0, down), minlength=links)
    back = np.sum(mixture * problem.backward_s, axis=1) + np.where(
        alone, down, total[problem.curves.link]
    )
    first, second = _smooth(arrive), _smooth(back)
    of_link = np.bincount(problem.curves.link, np.where(alone, 0.0, second), minlength=links)
    paid = np.where(alone, second, of_link[problem.curves.link])[:, None]
    slope = first[:, None] * sent + second[:, None] * problem.backward_s + paid * problem.down_s
    slope = slope + problem.server_s
    scale = float(np.max(arrive)) + float(np.max(back)) + float(np.sum(mixture * problem.server_s))
    budget = max(problem.loss_budget, SLACK)
    excess = float(np.sum(mixture * problem.loss)) / budget - 1.0
    push = max(0.0, multiplier + penalty * excess)
    return slope / scale + push * problem.loss / budget, excess


def _smooth(values: Floats) -> Floats:
    """Return the weights of a smooth maximum, summing to 1."""
    scaled = np.exp(_SHARPNESS * (values / max(float(np.max(values)), 1e-300) - 1.0))
    return np.asarray(scaled / np.sum(scaled), np.float64)


def _rounded(problem: SplitProblem, mixture: Floats) -> Ints:
    """Return the likeliest lines, moved as little as the loss budget asks."""
    index = np.asarray(np.argmax(mixture, axis=1), np.int64)
    if problem.loss_of(index) <= problem.loss_budget + SLACK:
        return index
    cost = -np.log(np.maximum(mixture, 1e-30))
    load = np.where(problem.allowed, problem.loss, np.inf)
    everyone = np.zeros(len(problem), np.int64)
    return choose(cost, load, np.array([problem.loss_budget + SLACK]), everyone).index
