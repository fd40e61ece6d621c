"""Which rounds and devices of a run a page can show, and what each device did in them.

A page holds a bounded number of rounds and devices, whatever the run's size; the rest is in
`devices.csv`. Rounds: the first, the last, the slowest, and evenly spaced ones. Devices: those that
were slowest on average, and evenly spaced ones of the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from airtune.plan import Ints
from airtune.records import Columns
from airtune.report.study import RunSeries, column

DEVICES = 40
_ROWS = 1600
"""Rows of `devices.csv` that a page shows of a run, about."""
_FEWEST, _MOST = 24, 120

PHASES = ("download", "compute", "upload")


def shown_rounds(run: RunSeries, devices: int) -> list[int]:
    """Return positions in the list of rounds, rising, when so many devices are shown."""
    count = len(run.record.rounds)
    room = min(max(_ROWS // max(devices, 1), _FEWEST), _MOST)
    if count <= room:
        return list(range(count))
    took = np.nan_to_num(column(run.record.rounds, "round_s"))
    spaced = np.linspace(0, count - 1, room - 1).round().astype(int)
    return sorted({*spaced.tolist(), int(np.argmax(took))})


def shown_devices(run: RunSeries) -> Ints:
    """Return the indices of the devices that are shown, rising."""
    devices = run.record.devices
    names = np.unique(devices["device"])
    if names.size <= DEVICES:
        return names
    index = np.searchsorted(names, devices["device"])
    total = np.bincount(index, weights=np.nan_to_num(devices["finish_s"]), minlength=names.size)
    slow_first = names[np.argsort(-total / np.bincount(index, minlength=names.size))]
    half = DEVICES // 2
    rest = slow_first[half:]
    spaced = rest[np.linspace(0, rest.size - 1, DEVICES - half).round().astype(int)]
    return np.sort(np.concatenate([slow_first[:half], spaced]))


def rows_of(devices: Columns, number: int, shown: Ints) -> Ints:
    """Return the rows of `devices.csv` of one round, for the devices shown."""
    wanted = (devices["round"] == number) & np.isin(devices["device"], shown)
    return np.flatnonzero(wanted)


def round_data(run: RunSeries, index: int, shown: Ints) -> dict[str, Any]:
    """Return one round as the page draws it: a timeline and the decisions with their reasons."""
    record, devices = run.record.rounds[index], run.record.devices
    rows = rows_of(devices, int(record["round"]), shown)
    every = np.flatnonzero(devices["round"] == record["round"])
    finish = np.where(devices["status"][every] == "ok", devices["finish_s"][every], np.nan)
    known = np.isfinite(finish)
    slowest = int(every[np.nanargmax(finish)]) if known.any() else None
    return {
        "round": int(record["round"]),
        "took": _rounded([record.get("round_s")])[0],
        "planned": _rounded([record.get("predicted_s")])[0],
        "straggler": -1 if slowest is None else int(devices["device"][slowest]),
        "straggler_name": "" if slowest is None else devices["name"][slowest],
        "device": devices["device"][rows].tolist(),
        "status": devices["status"][rows].tolist(),
        **{phase: _rounded(devices[f"{phase}_s"][rows].tolist()) for phase in PHASES},
        "finish": _rounded(devices["finish_s"][rows].tolist()),
        "pruned": _rounded(devices["pruned"][rows].tolist()),
        "rank": devices["rank"][rows].tolist(),
        "cut": devices["cut"][rows].tolist(),
        "codec": [str(codec) for codec in devices["codec"][rows]],
        "share": _rounded(devices["share"][rows].tolist()),
        "reason": [
            reason.removeprefix(f"{name}: ")
            for reason, name in zip(devices["reason"][rows], devices["name"][rows], strict=True)
        ],
    }


def device_names(run: RunSeries, shown: Ints) -> dict[int, str]:
    """Return the names of the devices shown, told apart by their index where two are alike."""
    devices = run.record.devices
    rows = np.flatnonzero(np.isin(devices["device"], shown))
    indices, firsts = np.unique(devices["device"][rows], return_index=True)
    names = devices["name"][rows[firsts]].tolist()
    often = Counter(names)
    return {
        index: name if often[name] == 1 else f"{name} (#{index})"
        for index, name in zip(indices.tolist(), names, strict=True)
    }


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    """Shorten numbers to what a picture can show; None where there is none."""
    return [
        None if value is None or not np.isfinite(value) else float(f"{value:.5g}")
        for value in values
    ]
