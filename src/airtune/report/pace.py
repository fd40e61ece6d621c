"""What a deadline does for a run: waiting, signal a second, what work is worth, and the mean's gain.

Read from the notes of the rounds (`deadline_s`, `signal_per_s`, `worth_steps`, ..., see
`methods/fedspine` and `methods/paced`) and from validations of the last weights, where a run has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from airtune.plan import Floats
from airtune.report.figure import Figure, axis, colour_of, dash_of, layout
from airtune.report.study import RunSeries, column

Lines = Mapping[str, Floats]


def pace_figures(run: RunSeries) -> dict[str, tuple[Figure, str]]:
    """Return figures by title, each with its caption; only those that a run has records for."""
    rounds = run.record.rounds
    number = column(rounds, "round")
    notes = [row.get("notes") or {} for row in rounds]
    found: dict[str, tuple[Figure, str]] = {}
    if any("deadline_s" in note for note in notes):
        waited = waiting(run)
        lines = {"waiting": 100.0 * waited}
        found["Waiting"] = (
            _figure(number, lines, "share of the round (%)"),
            f"Devices waited for the slowest device {100 * np.nanmean(waited):.0f} % of a round on "
            "average.",
        )
    if any("signal_per_s" in note for note in notes):
        ours, fixed = column(notes, "signal_per_s"), column(notes, "fixed_signal_per_s")
        found["Progress per second"] = (
            _figure(
                number, {"so far": ours, "best fixed setting": fixed}, "estimated progress (1/s)"
            ),
            f"Estimated progress per second was {ours[-1] / fixed[-1]:.2f} times that of the best single "
            "rank, width and number of steps for all devices, chosen in hindsight.",
        )
        found["Learnt value of an update"] = _worth(number, notes)
    raw = [row.get("validation_raw") for row in rounds]
    if any(raw):
        found["Averaged and latest weights"] = _raw(run, raw)
    return found


def waiting(run: RunSeries) -> Floats:
    """Return the part of each round that a device which answered waited, on average; NaN = none did."""
    devices, parts = run.record.devices, []
    for row in run.record.rounds:
        mine = (devices["round"] == row["round"]) & (devices["status"] == "ok")
        finish_s, round_s = devices["finish_s"][mine], float(row["round_s"])
        known = finish_s.size and round_s > 0.0
        parts.append(1.0 - float(np.mean(finish_s)) / round_s if known else np.nan)
    return np.array(parts)


def _worth(number: Floats, notes: Sequence[Mapping[str, Any]]) -> tuple[Figure, str]:
    lines = {name: column(notes, f"worth_{name}") for name in ("steps", "rank", "width")}
    spread = notes[-1]["worth_sd"][0]
    ends = ", ".join(
        f"{name}^{values[-1]:.2f} (± {2 * deviation:.2f})"
        for (name, values), deviation in zip(lines.items(), spread, strict=True)
    )
    return (
        _figure(number, lines, "exponent"),
        f"The learnt value of an update is the product of {ends}; ± is two standard deviations, "
        "prior included.",
    )


def _raw(run: RunSeries, raw: Sequence[Mapping[str, float] | None]) -> tuple[Figure, str]:
    key = "accuracy" if any(row and "accuracy" in row for row in raw) else "loss"
    judged = [row.get("validation") or {} for row in run.record.rounds]
    lines = {
        "average over rounds": column(judged, key),
        "latest weights": column([row or {} for row in raw], key),
    }
    return (
        _figure(column(run.record.rounds, "round"), lines, key),
        "The run exports the running average of the server's weights; devices continue from the "
        "latest weights.",
    )


def _figure(number: Floats, lines: Lines, title: str) -> Figure:
    traces = []
    for index, (name, values) in enumerate(lines.items(), start=1):
        known = np.isfinite(values)
        traces.append(
            {
                "mode": "lines+markers" if known.sum() < 40 else "lines",
                "name": name,
                "x": number[known].tolist(),
                "y": [float(f"{value:.5g}") for value in values[known]],
                "line": {"color": colour_of(index), "width": 1.75, "dash": dash_of(index)},
                "hovertemplate": "%{y:.3g} in round %{x}",
            }
        )
    return {"data": traces, "layout": layout(x=axis("round"), y=axis(title), height=300)}
