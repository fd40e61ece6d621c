"""One measured figure and the goal it is held against."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """A line of a benchmark's output.

    >>> print(Figure("solvers.gap", 2e-9, "<= 1e-8", True, "the solver's own dual").to_json())
    {"name": "solvers.gap", "value": 2e-09, "goal": "<= 1e-8", "holds": true, "compared_with": "the solver's own dual"}
    """

    name: str
    """Benchmark, dot, quantity with its unit."""
    value: float | None
    """None where it could not be measured here."""
    goal: str
    """For people: the bound, or "none" for a figure that only informs."""
    holds: bool
    compared_with: str
    """What the value is a ratio to, or how it was measured."""

    def to_json(self) -> str:
        """Return the figure as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)


def skipped(name: str, goal: str, reason: str) -> Figure:
    """Return a figure that this machine lacks the means to measure; it fails nothing.

    >>> skipped("real.loss", "<= 1.9", "skipped: no model").value is None
    True
    """
    return Figure(name, None, goal, holds=True, compared_with=reason)


def at_most(name: str, value: float, bound: float, compared_with: str) -> Figure:
    """Return a figure that holds when its value is no more than a bound.

    >>> at_most("solvers.gap", 2e-9, 1e-8, "its dual").holds
    True
    """
    return Figure(name, float(value), f"<= {bound:g}", bool(value <= bound), compared_with)


def at_least(name: str, value: float, bound: float, compared_with: str) -> Figure:
    """Return a figure that holds when its value is no less than a bound.

    >>> at_least("solvers.speed", 3.0, 50.0, "scipy").goal
    '>= 50'
    """
    return Figure(name, float(value), f">= {bound:g}", bool(value >= bound), compared_with)
