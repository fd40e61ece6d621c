"""Peak training memory against each device's limit, and what the tightest device spends it on.

The parts come from the cost model, priced for the assignment that the records hold; they are shown
only where their sum is the peak that the records state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from airtune.cost import peak_memory
from airtune.plan import Assignments, CodecSpec, Ints, Linear, ModelShape, Workload, whole_model
from airtune.report.figure import Figure, axis, label, layout
from airtune.report.rounds import device_names
from airtune.report.study import RunSeries
from airtune.report.wording import bytes_scale
from airtune.units import format_bytes

_PARTS = ("weights", "adapters", "gradients", "optimiser", "activations", "logits")
_TOLERANCE = 0.01


def tightest_row(run: RunSeries) -> int | None:
    """Return the row of `devices.csv` that came nearest to its device's limit."""
    devices = run.record.devices
    with np.errstate(invalid="ignore", divide="ignore"):
        load = devices["peak_bytes"] / devices["memory_bytes"]
    known = np.isfinite(load) & (load > 0.0)
    return int(np.argmax(np.where(known, load, -1.0))) if known.any() else None


def limits_figure(run: RunSeries, shown: Ints) -> Figure | None:
    """Return each device's highest peak beside its limit; None where no limit is finite."""
    devices = run.record.devices
    names = device_names(run, shown)
    peaks, limits = [], []
    for index in shown.tolist():
        rows = devices["device"] == index
        peaks.append(float(np.nanmax(devices["peak_bytes"][rows], initial=0.0)))
        limits.append(float(devices["memory_bytes"][rows][0]))
    if not np.isfinite(limits).any():
        return None
    scale, unit = bytes_scale(max(value for value in limits if np.isfinite(value)))
    rows_y = [label(names[index]) for index in shown.tolist()]
    bars = {
        "type": "bar",
        "orientation": "h",
        "name": "highest peak",
        "y": rows_y,
        "x": [peak / scale for peak in peaks],
        "marker": {"color": "var(--compute)"},
        "hovertemplate": f"%{{y}}: %{{x:.3g}} {unit}<extra>highest peak</extra>",
    }
    marks = {
        "type": "scatter",
        "mode": "markers",
        "name": "limit",
        "y": rows_y,
        "x": [limit / scale if np.isfinite(limit) else None for limit in limits],
        "marker": {
            "symbol": "line-ns-open",
            "size": 14,
            "color": "var(--ink)",
            "line": {"width": 2.5},
        },
        "hovertemplate": f"%{{y}}: %{{x:.3g}} {unit}<extra>limit</extra>",
    }
    data = [bars, marks]
    if planned := planned_peaks(run):
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "highest plan",
                "y": rows_y,
                "x": [
                    planned[names[index]] / scale if names[index] in planned else None
                    for index in shown.tolist()
                ],
                "marker": {"symbol": "diamond-open", "size": 10, "color": "var(--ink)"},
                "hovertemplate": f"%{{y}}: %{{x:.3g}} {unit}<extra>highest plan</extra>",
            }
        )
    figure = layout(
        x=axis(f"memory ({unit})", from_zero=True),
        y=axis(""),
        height=110 + max(15, min(24, 900 // len(shown))) * len(shown),
    )
    figure["yaxis"] |= {
        "autorange": "reversed",
        "type": "category",
        "showgrid": False,
        "tickfont": {"size": 11},
    }
    figure["bargap"] = 0.35
    return {"data": data, "layout": figure}


def planned_peaks(run: RunSeries) -> dict[str, float]:
    """Return the highest peak that was planned for each device; {} where none was measured."""
    found: dict[str, float] = {}
    for record in run.record.rounds:
        for name, planned in (record.get("planned_peak_bytes") or {}).items():
            found[name] = max(found.get(name, 0.0), planned)
    return found


def waterfall(run: RunSeries) -> tuple[Figure, str] | None:
    """Return the parts of the tightest device's peak, with its caption.

    None where the header does not describe the model, or the parts do not add up to the record.
    """
    row = tightest_row(run)
    shape, workload = _shape(run.record.header), _workload(run.record.header)
    if row is None or shape is None or workload is None:
        return None
    devices = run.record.devices
    told = _assignment(run, row)
    spent = peak_memory(shape, workload, told)
    recorded = float(devices["peak_bytes"][row])
    if told.cut[0] or abs(float(spent.total[0]) / recorded - 1.0) > _TOLERANCE:
        return None
    dense = whole_model(
        told.device, rank=int(told.rank[0]), local_steps=int(told.local_steps[0]), share=told.share
    )
    unpruned = float(peak_memory(shape, workload, dense).total[0])
    limit = float(devices["memory_bytes"][row])
    parts = {part: float(np.broadcast_to(getattr(spent, part), (1,))[0]) for part in _PARTS}
    caption = (
        f"Peak memory of {devices['name'][row]}, the device nearest to its limit, in round "
        f"{devices['round'][row]}, part by part."
    )
    return _draw(parts, saved=unpruned - recorded, limit=limit), caption


def _draw(parts: Mapping[str, float], *, saved: float, limit: float) -> Figure:
    total = sum(parts.values())
    scale, unit = bytes_scale(max(total, limit))
    steps = [
        (name, start, value, "var(--c6)")
        for (name, value), start in zip(
            parts.items(), np.cumsum([0.0, *parts.values()]).tolist(), strict=False
        )
    ]
    steps.append(("peak", 0.0, total, "var(--compute)"))
    if saved > 0.0:
        steps.append(("saved by pruning", total, saved, "var(--saved)"))
    names, starts, values, colours = zip(*steps, strict=True)
    bar = {
        "type": "bar",
        "orientation": "h",
        "y": names,
        "x": [value / scale for value in values],
        "base": [start / scale for start in starts],
        "text": [format_bytes(v) for v in values],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": colours},
        "hovertemplate": "%{y}: %{text}<extra></extra>",
    }
    furthest = max(total + max(saved, 0.0), limit) / scale
    figure = layout(x=axis(f"memory ({unit})"), y=axis(""), height=110 + 34 * len(steps))
    figure["bargap"] = 0.3
    figure["showlegend"] = False
    figure["xaxis"] |= {"range": [0, 1.22 * furthest]}
    figure["yaxis"] |= {"autorange": "reversed", "type": "category", "showgrid": False}
    figure["shapes"] = [
        {
            "type": "line",
            "layer": "below",
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "x0": limit / scale,
            "x1": limit / scale,
            "line": {"color": "var(--warn)", "width": 1.5, "dash": "dash"},
        }
    ]
    figure["annotations"] = [
        {
            "text": f"limit {format_bytes(limit)}",
            "yref": "paper",
            "y": 1,
            "x": limit / scale,
            "xanchor": "center",
            "yanchor": "bottom",
            "showarrow": False,
            "font": {"color": "var(--warn)", "size": 12},
        }
    ]
    return {"data": [bar], "layout": figure}


def _assignment(run: RunSeries, row: int) -> Assignments:
    devices = run.record.devices
    one = slice(row, row + 1)
    return Assignments(
        device=devices["device"][one],
        prune_heads=devices["prune_heads"][one],
        prune_ffn=devices["prune_ffn"][one],
        rank=devices["rank"][one],
        share=devices["share"][one],
        local_steps=devices["local_steps"][one],
        cut=devices["cut"][one],
        codec_index=np.zeros(1, np.int64),
    )


def _shape(header: Mapping[str, Any]) -> ModelShape | None:
    fields = header.get("model", {}).get("shape")
    if not isinstance(fields, dict) or set(fields) != set(ModelShape.__slots__):
        return None
    return ModelShape(**{**fields, "linears": tuple(Linear(**one) for one in fields["linears"])})


def _workload(header: Mapping[str, Any]) -> Workload | None:
    fields = header.get("workload")
    if not isinstance(fields, dict) or set(fields) != set(Workload.__slots__):
        return None
    return Workload(
        **{
            **fields,
            "lora_targets": tuple(fields["lora_targets"]),
            "upload": CodecSpec(**fields["upload"]),
        }
    )
