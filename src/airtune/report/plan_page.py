"""The page of a plan: what it costs, what would help, and the front of plans as a picture.

It is written from words and numbers that are ready, so that this room reads no recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from airtune.records import write_atomically
from airtune.report.cards import Card
from airtune.report.figure import Figure, axis, label, layout
from airtune.report.html import render


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table of the page."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Dots:
    """Plans as dots: two costs across and up, a third as their size."""

    titles: tuple[str, str, str]
    """Of the axes and of the size, with units; the last may be empty."""
    points: tuple[tuple[str, float, float, float], ...]
    """Words, and the three values."""
    own: tuple[float, float]
    """The plan as the recipe has it."""


@dataclass(frozen=True, slots=True)
class PlanPage:
    """All that the page says."""

    title: str
    subtitle: str
    headline: str
    cards: tuple[Card, ...]
    warnings: tuple[str, ...]
    sheets: tuple[Sheet, ...]
    prices: tuple[str, ...]
    assumptions: tuple[str, ...]
    recipe: str
    front: Dots | None = None


def write_plan_page(page: PlanPage, path: Path) -> None:
    """Write the page.

    Raises:
        StorageError: if it cannot be written.
    """
    figures = {} if page.front is None else {"front": front_figure(page.front)}
    write_atomically(path, render("plan.html", {"page": page, "title": page.title}, figures))


def front_figure(dots: Dots) -> Figure:
    """Return the dots as a plotly figure."""
    words, across, up, sizes = zip(*dots.points, strict=True) if dots.points else ((),) * 4
    most = max(sizes, default=0.0) or 1.0
    sized = dots.titles[2]
    figure = layout(
        x=axis(dots.titles[0], from_zero=True), y=axis(dots.titles[1], from_zero=True), height=420
    )
    beside = f"<br>{label(sized)}: %{{customdata:.3g}}" if sized else ""
    return {
        "data": [
            {
                "mode": "markers",
                "name": f"dot: {sized}" if sized else "plans",
                "x": list(across),
                "y": list(up),
                "customdata": list(sizes),
                "text": [label(word) for word in words],
                "marker": {
                    "color": "var(--c1) 60%",
                    "line": {"width": 1, "color": "var(--paper)"},
                    "size": [8 + 16 * size / most if sized else 11 for size in sizes],
                },
                "hovertemplate": f"%{{text}}<br>%{{x:.3g}}, %{{y:.3g}}{beside}<extra></extra>",
            },
            {
                "mode": "markers",
                "name": "as the recipe has it",
                "x": [dots.own[0]],
                "y": [dots.own[1]],
                "hovertemplate": "as the recipe has it<extra></extra>",
                "marker": {"color": "var(--c2)", "symbol": "x", "size": 11},
            },
        ],
        "layout": figure,
    }
