"""What each device was told over the rounds, as heatmaps; what never changes, as a sentence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.plan import Floats, Ints
from airtune.report.figure import Figure, axis, label, layout
from airtune.report.rounds import device_names
from airtune.report.study import RunSeries

_COLUMNS = 240
"""Rounds in a heatmap; a longer run is shown in even steps."""


@dataclass(frozen=True, slots=True)
class Knob:
    """One of the decisions of a plan."""

    name: str
    title: str
    percent: bool


KNOBS = (
    Knob("pruned", "Pruned weights", percent=True),
    Knob("share", "Share of the link", percent=True),
    Knob("rank", "LoRA rank", percent=False),
    Knob("cut", "Blocks on the device", percent=False),
    Knob("local_steps", "Local steps", percent=False),
)


def heatmaps(run: RunSeries, shown: Ints) -> tuple[dict[str, Figure], str]:
    """Return a figure for each knob that varies, by title, and a sentence on those that do not."""
    figures: dict[str, Figure] = {}
    constant: list[str] = []
    for knob in KNOBS:
        values = run.record.devices[knob.name]
        if not values.size:
            continue
        if np.ptp(values) == 0:
            constant.append(_constant(knob, float(values[0])))
        else:
            figures[knob.title] = _heatmap(run, knob, shown)
    same = f"The same on every device in every round: {', '.join(constant)}." if constant else ""
    return figures, same


def _constant(knob: Knob, value: float) -> str:
    if knob.name == "cut" and value == 0:
        return "no model split"
    if knob.name == "pruned" and value == 0:
        return "no pruning"
    shown = f"{100 * value:.3g} %" if knob.percent else f"{value:g}"
    return f"{knob.title[0].lower() if knob.name != 'rank' else 'L'}{knob.title[1:]} {shown}"


def _heatmap(run: RunSeries, knob: Knob, shown: Ints) -> Figure:
    rounds, matrix = _matrix(run, knob.name, shown)
    names = device_names(run, shown)
    unit = ":.1%" if knob.percent else ":g"
    ceiling = {"zmin": 0} if knob.percent else {}
    trace = {
        "type": "heatmap",
        "x": rounds.tolist(),
        "y": [label(names[index]) for index in shown.tolist()],
        "z": [[None if np.isnan(v) else float(f"{v:.4g}") for v in row] for row in matrix],
        "colorscale": [[0, "var(--heat-0)"], [0.5, "var(--heat-1)"], [1, "var(--heat-2)"]],
        **ceiling,
        "hoverongaps": False,
        "xgap": 1 if rounds.size <= 60 else 0,
        "ygap": 1,
        "colorbar": {
            "thickness": 10,
            "outlinewidth": 0,
            "tickformat": ".0%" if knob.percent else "",
            "len": 1,
            "x": 1.01,
            "xpad": 4,
            **({} if knob.percent else {"nticks": 5}),
        },
        "hovertemplate": f"%{{y}}, round %{{x}}<br>{knob.title.lower()} %{{z{unit}}}<extra></extra>",
    }
    height = 96 + max(15, min(26, 900 // len(shown))) * len(shown)
    figure = layout(x=axis("round"), y=axis(""), height=height)
    figure["yaxis"] |= {
        "autorange": "reversed",
        "type": "category",
        "showgrid": False,
        "tickfont": {"size": 11},
        "ticklabelstep": 1 + len(shown) // 60,
    }
    figure["xaxis"] |= {"showgrid": False}
    return {"data": [trace], "layout": figure}


def _matrix(run: RunSeries, name: str, shown: Ints) -> tuple[Ints, Floats]:
    """Return the rounds and a knob's values, shape (devices, rounds); NaN where a device was out."""
    devices = run.record.devices
    rounds = np.unique(devices["round"])
    if rounds.size > _COLUMNS:
        rounds = rounds[np.linspace(0, rounds.size - 1, _COLUMNS).round().astype(int)]
    rows = np.flatnonzero(np.isin(devices["round"], rounds) & np.isin(devices["device"], shown))
    matrix = np.full((shown.size, rounds.size), np.nan)
    matrix[
        np.searchsorted(shown, devices["device"][rows]),
        np.searchsorted(rounds, devices["round"][rows]),
    ] = devices[name][rows]
    return rounds, matrix
