"""Quality against time and against bytes: one line a method, its band the spread of the seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from airtune.plan import Floats
from airtune.records import Metric
from airtune.report.figure import Figure, axis, colour_of, dash_of, layout
from airtune.report.study import RunSeries, Study
from airtune.report.summary import Row, Summary
from airtune.report.wording import bytes_scale, seconds_scale

Kind = Literal["time", "bytes"]
_POINTS = 160


@dataclass(frozen=True, slots=True)
class Curve:
    """A method's quality over what it spent, averaged over seeds; columns of shape (points,)."""

    method: str
    spent: Floats
    mean: Floats
    low: Floats
    """Lowest seed."""
    high: Floats
    reached: float | None
    """Mean cost to the target; None where a seed missed it."""
    colour: int
    """Index into the palette; 0 is the baseline's neutral grey."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A set of curves with its axes, drawn by plotly in the page and as a plain SVG beside it."""

    kind: Kind
    curves: tuple[Curve, ...]
    x_title: str
    y_title: str
    target: float | None
    metric: Metric


def quality_chart(study: Study, summary: Summary, kind: Kind) -> Chart:
    """Return the curves of a study against virtual wall-clock or against bytes on the air."""
    most = max((run.total(_spent(run, kind)) for run in study.runs), default=1.0)
    scale, unit = seconds_scale(most) if kind == "time" else bytes_scale(most)
    curves = []
    for index, method in enumerate(study.methods):
        runs = [run for run in study.of(method) if run.quality.size]
        if runs:
            colour = colour_index(study, index)
            curves.append(_curve(runs, summary.rows[method], (kind, scale, most / scale), colour))
    titles = {"time": "virtual wall-clock", "bytes": "bytes up and down"}
    return Chart(
        kind=kind,
        curves=tuple(curves),
        x_title=f"{titles[kind]} ({unit})",
        y_title=study.label,
        target=study.target,
        metric=study.metric,
    )


def colour_index(study: Study, index: int) -> int:
    """Return the palette index of a method by its number in the study; the baseline takes the neutral 0."""
    others = [name for name in study.methods if name != study.baseline]
    name = study.methods[index]
    return 0 if name == study.baseline else 1 + others.index(name)


def draw(chart: Chart) -> Figure:
    """Return the chart as a plotly figure."""
    traces = [trace for curve in chart.curves for trace in _traces(curve, chart)]
    figure = layout(x=axis(chart.x_title, from_zero=True), y=axis(chart.y_title), height=400)
    if chart.metric.is_share:
        figure["yaxis"]["tickformat"] = ".0%"
    if chart.target is not None:
        figure["shapes"] = [
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": chart.target,
                "y1": chart.target,
                "line": {"color": "var(--muted)", "width": 1, "dash": "dot"},
            }
        ]
        figure["annotations"] = [
            {
                "text": f"target {chart.metric.write(chart.target)}",
                "xref": "paper",
                "x": 1,
                "y": chart.target,
                "xanchor": "right",
                "yanchor": "bottom",
                "showarrow": False,
                "font": {"color": "var(--muted)", "size": 12},
            }
        ]
    figure["showlegend"] = len(chart.curves) > 1
    return {"data": traces, "layout": figure}


def _traces(curve: Curve, chart: Chart) -> list[Figure]:
    colour = colour_of(curve.colour)
    band = {
        "mode": "lines",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": curve.method,
        "x": curve.spent.tolist(),
    }
    shown = ":.1%" if chart.metric.is_share else ":.4g"
    traces: list[Figure] = [
        {**band, "y": curve.low.tolist()},
        {**band, "y": curve.high.tolist(), "fill": "tonexty", "fillcolor": f"{colour} 16%"},
        {
            "mode": "lines",
            "name": curve.method,
            "legendgroup": curve.method,
            "x": curve.spent.tolist(),
            "y": curve.mean.tolist(),
            "line": {"color": colour, "width": 2.25, "dash": dash_of(curve.colour)},
            "hovertemplate": f"%{{y{shown}}} at %{{x:.4g}}",
        },
    ]
    if curve.reached is not None and chart.target is not None:
        traces.append(
            {
                "mode": "markers",
                "x": [curve.reached],
                "y": [chart.target],
                "showlegend": False,
                "legendgroup": curve.method,
                "name": f"{curve.method} at the target",
                "marker": {
                    "size": 10,
                    "color": colour,
                    "line": {"width": 2, "color": "var(--paper)"},
                },
                "hovertemplate": "target reached at %{x:.4g}",
            }
        )
    return traces


def _spent(run: RunSeries, kind: Kind) -> Floats:
    return run.end_s if kind == "time" else run.traffic_bytes


def _curve(
    runs: Sequence[RunSeries], row: Row, chart: tuple[Kind, float, float], colour: int
) -> Curve:
    """Average the seeds on a common axis, from where all have begun to where the first ends.

    `chart` holds the kind, the divisor of its axis and, after division, the axis' end.
    """
    kind, scale, most = chart
    spent = [_spent(run, kind)[run.evaluated] / scale for run in runs]
    quality = [run.quality for run in runs]
    if all(math.isfinite(run.initial) for run in runs):
        spent = [np.concatenate([[0.0], column]) for column in spent]
        quality = [np.concatenate([[run.initial], run.quality]) for run in runs]
    if max(column[-1] for column in spent) <= 0.0:
        # a control that spends nothing here is a level to compare with
        spent = [np.array([0.0, most]) for _ in runs]
        quality = [run.quality[[-1, -1]] for run in runs]
    start, end = max(column[0] for column in spent), min(column[-1] for column in spent)
    points = np.unique(
        np.concatenate([column[(column >= start) & (column <= end)] for column in spent])
    )
    if points.size > _POINTS or points.size < 2:
        points = np.linspace(start, max(end, start), _POINTS)
    seeds = np.array(
        [np.interp(points, column, values) for column, values in zip(spent, quality, strict=True)]
    )
    costs = row.cost(kind)
    hit = bool(costs) and all(cost.hit for cost in costs)
    return Curve(
        method=runs[0].method,
        spent=points,
        mean=seeds.mean(axis=0),
        low=seeds.min(axis=0),
        high=seeds.max(axis=0),
        reached=sum(cost.value for cost in costs) / len(costs) / scale if hit else None,
        colour=colour,
    )
