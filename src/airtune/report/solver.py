"""How well the plans were solved: the certified gap, and planned against real round time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from airtune.report.figure import Figure, axis, layout
from airtune.report.study import RunSeries, column
from airtune.report.wording import seconds_scale

_FLOOR = 1e-12
"""The smallest gap drawn on the logarithmic axis."""


def gap_figure(run: RunSeries) -> Figure | None:
    """Return the certified gap of each round's plan, before and after rounding; None without any."""
    solutions = [row.get("solution") or {} for row in run.record.rounds]
    rounds = column(run.record.rounds, "round")
    traces = []
    for name, title, colour in (
        ("gap", "continuous answer", "var(--c1)"),
        ("gap_rounded", "after rounding to whole structures", "var(--c2)"),
    ):
        gap = column(solutions, name)
        if np.isfinite(gap).any():
            traces.append(
                {
                    "mode": "lines+markers",
                    "name": title,
                    "x": rounds.tolist(),
                    "y": [
                        None if np.isnan(value) else max(value, _FLOOR) for value in gap.tolist()
                    ],
                    "line": {"color": colour, "width": 1.75},
                    "marker": {"size": 4},
                    "hovertemplate": "%{y:.2e} in round %{x}",
                }
            )
    if not traces:
        return None
    figure = layout(x=axis("round"), y=axis("relative gap"), height=320)
    figure["yaxis"] |= {"type": "log", "exponentformat": "power", "dtick": 2}
    return {"data": traces, "layout": figure}


def forecast_figure(run: RunSeries) -> Figure | None:
    """Return planned and real time of each round; None where no plan could know."""
    rounds = column(run.record.rounds, "round")
    planned, took = column(run.record.rounds, "predicted_s"), column(run.record.rounds, "round_s")
    if not np.isfinite(planned).any():
        return None
    scale, unit = seconds_scale(float(np.nanmax(took)))
    traces = [
        {
            "mode": "lines",
            "name": name,
            "x": rounds.tolist(),
            "y": [None if np.isnan(value) else value / scale for value in values.tolist()],
            "line": {"color": colour, "width": 1.75, "dash": dash},
            "hovertemplate": f"%{{y:.4g}} {unit} in round %{{x}}",
        }
        for name, values, colour, dash in (
            ("took", took, "var(--c1)", "solid"),
            ("planned", planned, "var(--c2)", "dot"),
        )
    ]
    figure = layout(x=axis("round"), y=axis(f"round time ({unit})", from_zero=True), height=320)
    return {"data": traces, "layout": figure}


def solver_sentence(run: RunSeries) -> str:
    """Say with what the plans of a run were made and how they ended."""
    solutions = [row["solution"] for row in run.record.rounds if row.get("solution")]
    if not solutions:
        return f"{run.method} solves no optimisation problem, so there is no gap to show."
    ends = Counter(str(solution["status"]) for solution in solutions)
    counted = ", ".join(
        f"{count} {_ended(status, solutions)}" for status, count in ends.most_common()
    )
    name = solutions[-1].get("method") or run.method
    residual = max(float(solution.get("residual") or 0.0) for solution in solutions)
    return f"Solver {name}: {counted}; largest relative constraint violation {residual:.1e}."


def _ended(status: str, solutions: Sequence[Mapping[str, Any]]) -> str:
    """Say what a status is worth: one that stalled may still be proved near the optimum."""
    if status != "stalled":
        return status
    gaps = column([row for row in solutions if row["status"] == status], "gap")
    if not np.isfinite(gaps).all():
        return "ended without a certificate"
    return f"proven within {100 * float(gaps.max()):.2g} % of the optimum"
