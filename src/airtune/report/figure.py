"""What all figures share. A figure is plotly's JSON; a colour in it is the name of a CSS variable.

The page replaces `var(--c1)` and `var(--c1) 16%` (with opacity) by the colours of the scheme in
force and draws again when the reader changes it, so that colours stand in one place: `page.css`.
"""

from __future__ import annotations

import html
from typing import Any

Figure = dict[str, Any]

COLOURS = 8
"""Colours beside the neutral one; further methods repeat them with another dash."""
_DASHES = ("solid", "dash", "dot", "dashdot")


def palette_place(index: int) -> int:
    """Return which colour a palette index takes; 0 is neutral.

    >>> palette_place(0), palette_place(9)
    (0, 1)
    """
    return (index - 1) % COLOURS + 1 if index else 0


def colour_of(index: int) -> str:
    """Return the CSS variable of a palette index; 0 is neutral.

    >>> colour_of(0), colour_of(9)
    ('var(--c0)', 'var(--c1)')
    """
    return f"var(--c{palette_place(index)})"


def dash_of(index: int) -> str:
    """Return the dash of a palette index, so that lines differ without colour too."""
    return "dash" if index == 0 else _DASHES[(index - 1) // COLOURS % len(_DASHES)]


def label(text: str) -> str:
    """Return a name from the records as plotly shows it literally."""
    return html.escape(text, quote=False)


def axis(title: str, *, from_zero: bool = False) -> Figure:
    """Return a quiet axis."""
    return {
        "title": {"text": title, "standoff": 12, "font": {"size": 12, "color": "var(--muted)"}},
        "gridcolor": "var(--grid)",
        "linecolor": "var(--line)",
        "zeroline": False,
        "automargin": True,
        "fixedrange": False,
        **({"rangemode": "tozero"} if from_zero else {}),
    }


def layout(*, x: Figure, y: Figure, height: int) -> Figure:
    """Return the layout that all figures start from."""
    return {
        "height": height,
        "xaxis": x,
        "yaxis": y,
        "margin": {"l": 8, "r": 14, "t": 20, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "var(--sans)", "size": 13, "color": "var(--ink-soft)"},
        "hoverlabel": {
            "bgcolor": "var(--paper)",
            "bordercolor": "var(--line)",
            "font": {"color": "var(--ink)"},
        },
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    }
