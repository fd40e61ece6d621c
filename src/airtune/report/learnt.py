"""What was learnt of devices' speeds and rates, against what was declared."""

from __future__ import annotations

from typing import Any

import numpy as np

from airtune.plan import Ints
from airtune.report.figure import Figure, axis, colour_of, label, layout
from airtune.report.rounds import device_names
from airtune.report.study import RunSeries

_WHAT = {"speed": "speed", "up": "uplink", "down": "downlink"}


def learnt_figures(run: RunSeries, shown: Ints) -> dict[str, tuple[Figure, str]]:
    """Return a figure of the last values of the devices shown, by title; {} where none were learnt."""
    last: dict[int, dict[str, list[float]]] = {}
    for row in run.record.rounds:
        found: dict[str, Any] = row.get("learnt") or {"device": []}
        for index, device in enumerate(found["device"]):
            last[device] = {
                name: [found[name][end][index] for end in ("low", "middle", "high")]
                for name in _WHAT
            }
    places = [int(device) for device in shown if int(device) in last]
    if not places:
        return {}
    names = device_names(run, shown)
    data = []
    for number, (name, title) in enumerate(_WHAT.items()):
        low, middle, high = np.array([last[index][name] for index in places]).T
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": title,
                "x": [label(names[index]) for index in places],
                "y": middle.tolist(),
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": (high - middle).tolist(),
                    "arrayminus": (middle - low).tolist(),
                },
                "marker": {"color": colour_of(number + 1)},
                "hovertemplate": f"%{{x}}: {title} %{{y:.3g}} times the declared value<extra></extra>",
            }
        )
    figure = layout(x=axis(""), y=axis("learnt / declared (ratio)"), height=300)
    figure["xaxis"] |= {"type": "category"}
    figure["yaxis"] |= {"type": "log"}
    return {
        "Speeds and rates learnt": (
            {"data": data, "layout": figure},
            "Over what was declared, which is 1, at the end of the run; four of five true values are "
            "expected within the bars.",
        )
    }
