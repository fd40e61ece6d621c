"""What crossed the cut of a split run: a step with its server, bytes, spectrum, cuts, leakage.

Read from the key `split` of the rounds, the columns `cut` and `codec` of the devices, and the key
`leakage` of the result; any method that splits is shown, whatever its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from airtune.plan import Floats, Ints
from airtune.report.figure import Figure, axis, colour_of, label, layout
from airtune.report.rounds import device_names, rows_of
from airtune.report.study import RunSeries
from airtune.report.wording import bytes_scale, seconds_scale
from airtune.units import format_bytes, format_seconds

_PHASES = (
    ("forward", "var(--compute)"),
    ("upload", "var(--upload)"),
    ("server and waiting", "var(--grid)"),
    ("download", "var(--download)"),
    ("backward", "var(--c6)"),
)
_SERVER = "server"
_DIRECTIONS = (
    ("activations up", "activation_up_bytes", "var(--upload)"),
    ("gradients down", "gradient_down_bytes", "var(--download)"),
    ("adapters up", "adapter_up_bytes", "var(--c2)"),
    ("adapters down", "adapter_down_bytes", "var(--c0)"),
)


@dataclass(frozen=True, slots=True)
class SectionFigure:
    """A figure of the section, with what is said of it."""

    title: str
    figure: Figure
    caption: str


def split_panel(
    run: RunSeries, name: str, figures: dict[str, Figure], shown: Ints
) -> dict[str, Any] | None:
    """Put a run's figures among the page's; return keys, titles and words; None without a cut."""
    rounds = [row for row in run.record.rounds if row.get("split")]
    if not rounds:
        return None
    slowest = max(rounds, key=lambda row: float(row.get("round_s") or 0.0))
    parts = [
        step_figure(run, slowest, shown),
        bytes_figure(rounds),
        cut_figure(run, int(slowest["round"]), shown),
        spectrum_figure(run, slowest, shown),
        leakage_figure((run.record.results or {}).get("leakage") or []),
    ]
    kept = [part for part in parts if part is not None]
    for part in kept:
        figures[f"{name}-split-{part.title}"] = part.figure
    return {
        "sentence": f"{sentence(rounds)}{_served(run)}",
        "plots": [(f"{name}-split-{part.title}", part.title, part.caption) for part in kept],
    }


def sentence(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Say what crossed, and against what it can be held."""
    up, down = (_total(rounds, key) for key in ("activation_up_bytes", "gradient_down_bytes"))
    bound = _total(rounds, "bound_up_bytes") + _total(rounds, "bound_down_bytes")
    steps = int(_total(rounds, "steps"))
    said = (
        f"{steps} steps in {len(rounds)} rounds: {format_bytes(up)} of activations up and "
        f"{format_bytes(down)} of gradients down, with labels and lengths"
    )
    if bound > 0.0:
        said += f", {100 * ((up + down) / bound - 1):+.1f} % of the entropy bound".replace("-", "−")
    adapters = _total(rounds, "adapter_up_bytes") + _total(rounds, "adapter_down_bytes")
    said += f"; adapters of split devices took {format_bytes(adapters)} more"
    return f"{said}."


def _served(run: RunSeries) -> str:
    """Say how long the server computed, where that is known."""
    server_s = float(np.nansum(run.record.devices["server_s"]))
    return f" The server computed {format_seconds(server_s)} in all." if server_s > 0.0 else ""


def step_figure(run: RunSeries, row: Mapping[str, Any], shown: Ints) -> SectionFigure | None:
    """Draw the first step of a round, device by device, with the server in a lane of its own."""
    step = row["split"].get("first_step") or {}
    device = np.asarray(step.get("device", []), np.int64)
    places = np.flatnonzero(np.isin(device, shown))
    if not places.size:
        return None
    ends = np.array(
        [
            _column(step, key)[places]
            for key in ("forward_s", "upload_s", "download_s", "backward_s")
        ]
    )
    starts, stops = _numbers(step.get("server_start_s")), _numbers(step.get("server_end_s"))
    known = np.concatenate([ends.ravel(), stops])
    longest = float(np.nanmax(known[np.isfinite(known)], initial=0.0))
    scale, unit = seconds_scale(longest)
    # the answer is under way from the moment the server is done with this device
    last = np.array([_after(up, starts, stops) for up in ends[1]])
    edges = np.stack([np.zeros(places.size), ends[0], ends[1], last, ends[2], ends[3]]) / scale
    names = device_names(run, shown)
    lanes = [label(names[int(index)]) for index in device[places]]
    data = [
        _bars(name, lanes, edges[position], edges[position + 1], (colour, unit))
        for position, (name, colour) in enumerate(_PHASES)
    ]
    served = [_SERVER] * starts.size
    data.append(_bars(_SERVER, served, starts / scale, stops / scale, ("var(--c3)", unit)))
    figure = layout(
        x=axis(f"time since the round began ({unit})", from_zero=True),
        y=axis(""),
        height=130 + max(16, min(26, 900 // places.size)) * (places.size + 1),
    )
    figure |= {"barmode": "overlay", "bargap": 0.28}
    figure["yaxis"] |= {
        "type": "category",
        "categoryorder": "array",
        "showgrid": False,
        "categoryarray": [*lanes, _SERVER],
        "tickfont": {"size": 11},
        "range": [places.size + 0.5, -0.5],
    }
    return SectionFigure(
        "The first step",
        {"data": data, "layout": figure},
        f"The first step of round {row['round']}, the longest round: each device runs its blocks, "
        "sends the activation, waits for the server and for the gradient, and runs back.",
    )


def bytes_figure(rounds: Sequence[Mapping[str, Any]]) -> SectionFigure | None:
    """Draw what crossed in the run by direction, each beside its entropy bound where it has one."""
    totals = {title: _total(rounds, key) for title, key, _ in _DIRECTIONS}
    most = max(totals.values())
    if most <= 0.0:
        return None
    scale, unit = bytes_scale(most)
    titles = list(totals)
    bars = {
        "type": "bar",
        "orientation": "h",
        "name": "sent",
        "y": titles,
        "x": [value / scale for value in totals.values()],
        "marker": {"color": [colour for _, _, colour in _DIRECTIONS]},
        "text": [format_bytes(value) for value in totals.values()],
        "textposition": "auto",
        "hovertemplate": "%{y}: %{text}<extra></extra>",
        "showlegend": False,
    }
    bounds = [_total(rounds, "bound_up_bytes"), _total(rounds, "bound_down_bytes")]
    marks = {
        "type": "scatter",
        "mode": "markers",
        "name": "entropy bound",
        "y": titles[:2],
        "x": [value / scale if value > 0.0 else None for value in bounds],
        "marker": {
            "symbol": "line-ns-open",
            "size": 18,
            "color": "var(--ink)",
            "line": {"width": 2.5},
        },
        "hovertemplate": f"%{{y}}: bound %{{x:.3g}} {unit}<extra></extra>",
    }
    figure = layout(x=axis(f"sent in the run ({unit})", from_zero=True), y=axis(""), height=250)
    figure["yaxis"] |= {"autorange": "reversed", "type": "category", "showgrid": False}
    figure["bargap"] = 0.35
    return SectionFigure(
        "Bytes by direction",
        {"data": [bars, marks], "layout": figure},
        "The entropy bound assumes independent entries. Real activations are correlated, so a "
        "payload may be smaller. Adapters are sent once a round.",
    )


def cut_figure(run: RunSeries, number: int, shown: Ints) -> SectionFigure | None:
    """Draw how many blocks each device held in a round, with the codec it was told."""
    devices = run.record.devices
    rows = rows_of(devices, number, shown)
    rows = rows[devices["cut"][rows] > 0]
    if not rows.size:
        return None
    names = device_names(run, shown)
    codecs = [str(value) for value in devices["codec"][rows]]
    kinds = list(dict.fromkeys(codecs))
    data = []
    for position, kind in enumerate(kinds):
        mine = rows[[codec == kind for codec in codecs]]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": label(kind),
                "y": [label(names[int(index)]) for index in devices["device"][mine]],
                "x": devices["cut"][mine].tolist(),
                "marker": {"color": colour_of(position + 1)},
                "hovertemplate": f"%{{y}}: %{{x}} blocks, {label(kind)}<extra></extra>",
            }
        )
    figure = layout(
        x=axis("blocks on the device", from_zero=True),
        y=axis(""),
        height=130 + max(16, min(26, 900 // rows.size)) * rows.size,
    )
    figure |= {"bargap": 0.3, "showlegend": True}
    figure["xaxis"] |= {"dtick": 1} if devices["cut"][rows].max() <= 12 else {}
    figure["yaxis"] |= {
        "type": "category",
        "showgrid": False,
        "tickfont": {"size": 11},
        "autorange": "reversed",
        "categoryorder": "array",
        "categoryarray": [label(names[int(index)]) for index in devices["device"][rows]],
    }
    return SectionFigure(
        "Cut and codec",
        {"data": data, "layout": figure},
        f"Cut and codec of each device in round {number}.",
    )


def spectrum_figure(run: RunSeries, row: Mapping[str, Any], shown: Ints) -> SectionFigure | None:
    """Draw each device's share of its link in the slots of a round."""
    slots = [slot for slot in row["split"].get("slots") or [] if slot.get("share")]
    devices = run.record.devices
    worked = (devices["round"] == row["round"]) & (devices["local_steps"] > 0)
    told = devices["device"][worked]
    if not slots or any(len(slot["share"]) != told.size for slot in slots):
        return None
    shares = np.array([_numbers(slot["share"]) for slot in slots])[:, np.isin(told, shown)]
    names = device_names(run, shown)
    lanes = [label(names[int(index)]) for index in told[np.isin(told, shown)]]
    starts = _numbers([slot.get("start_s") for slot in slots])
    scale, unit = seconds_scale(float(np.nanmax(starts, initial=0.0)))
    trace = {
        "type": "heatmap",
        "y": lanes,
        "x": [f"{start / scale:.3g} {unit}" for start in starts.tolist()],
        "z": [
            [None if not np.isfinite(v) else float(f"{v:.4g}") for v in line] for line in shares.T
        ],
        "colorscale": [[0, "var(--heat-0)"], [0.5, "var(--heat-1)"], [1, "var(--heat-2)"]],
        "zmin": 0,
        "xgap": 1,
        "ygap": 1,
        "hoverongaps": False,
        "colorbar": {
            "thickness": 10,
            "outlinewidth": 0,
            "tickformat": ".0%",
            "len": 1,
            "x": 1.01,
            "xpad": 4,
        },
        "hovertemplate": "%{y} from %{x}: %{z:.1%}<extra></extra>",
    }
    figure = layout(
        x=axis("slot (labelled by its start)"),
        y=axis(""),
        height=110 + max(16, min(26, 900 // len(lanes))) * len(lanes),
    )
    figure["xaxis"] |= {"type": "category", "showgrid": False, "nticks": 6}
    figure["yaxis"] |= {
        "autorange": "reversed",
        "type": "category",
        "showgrid": False,
        "tickfont": {"size": 11},
    }
    return SectionFigure(
        "Share of the link, slot by slot",
        {"data": [trace], "layout": figure},
        f"At most the first {len(slots)} slots of round {row['round']}.",
    )


def leakage_figure(found: Sequence[Mapping[str, Any]]) -> SectionFigure | None:
    """Draw what an attacker recovers by cut, a line a codec."""
    if not found:
        return None
    is_text = all(one.get("token_recovery") is not None for one in found)
    key = "token_recovery" if is_text else "explained"
    data: list[Figure] = []
    for index, codec in enumerate(dict.fromkeys(str(one["codec"]) for one in found)):
        mine = [one for one in found if str(one["codec"]) == codec]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": label(codec),
                "x": [one["cut"] for one in mine],
                "y": [one[key] for one in mine],
                "line": {"color": colour_of(index + 1), "width": 2},
                "hovertemplate": f"cut %{{x}}: %{{y:.1%}}<extra>{label(codec)}</extra>",
            }
        )
    if is_text:
        cuts = sorted({one["cut"] for one in found})
        chance = float(np.mean([one["chance"] for one in found]))
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "guessing the most frequent token",
                "x": [cuts[0], cuts[-1]],
                "y": [chance] * 2,
                "line": {"color": "var(--c0)", "dash": "dash", "width": 1.5},
                "hoverinfo": "skip",
            }
        )
    what = "tokens recovered (%)" if is_text else "pixel variance explained (%)"
    figure = layout(x=axis("blocks on the device"), y=axis(what, from_zero=True), height=330)
    figure["xaxis"] |= {"dtick": 1}
    figure["yaxis"] |= {"tickformat": ".0%"}
    return SectionFigure(
        "Privacy: what the activations reveal",
        {"data": data, "layout": figure},
        "What a linear decoder recovers from the activations of unseen examples. A stronger attack "
        "recovers more: use this to compare cuts and codecs, not as a privacy guarantee.",
    )


def _bars(
    name: str, lanes: Sequence[str], start: Floats, end: Floats, look: tuple[str, str]
) -> Figure:
    colour, unit = look
    took = np.where(np.isfinite(end - start), np.maximum(end - start, 0.0), 0.0)
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": list(lanes),
        "x": [float(f"{value:.5g}") for value in took],
        "base": [float(f"{value:.5g}") for value in np.nan_to_num(start)],
        "marker": {"color": colour},
        "hovertemplate": f"%{{y}}: {name} %{{x:.3g}} {unit}<extra></extra>",
    }


def _after(up_s: float, starts: Floats, stops: Floats) -> float:
    """Return when the server was done with an activation that was there at `up_s`."""
    later = stops[starts >= up_s - 1e-9 * max(abs(up_s), 1.0)]
    return float(later.min()) if later.size and np.isfinite(up_s) else float("nan")


def _total(rounds: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(sum(float(row["split"].get(key) or 0.0) for row in rounds))


def _column(step: Mapping[str, Any], key: str) -> Floats:
    return _numbers(step.get(key) or [None] * len(step["device"]))


def _numbers(values: object) -> Floats:
    """Return one number or many as an array; null is NaN."""
    items = values if isinstance(values, list) else [values]
    return np.array([np.nan if item is None else item for item in items], np.float64)
