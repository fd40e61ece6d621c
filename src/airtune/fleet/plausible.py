"""Numbers that no device or link of these days has: mostly one unit taken for another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from airtune.fleet.fleet import Fleet
from airtune.plan import Floats
from airtune.units import GIB, format_number


def implausible(fleet: Fleet) -> list[str]:
    """Return a line for each key of a fleet's file whose numbers no device or link has.

    >>> from airtune.fleet import load_fleet
    >>> implausible(load_fleet("cell-10"))
    []
    """
    links = fleet.links_at(0, 0, 0.0)
    devices, specs = fleet.names, [spec.name for spec in fleet.specs]
    up_mhz = np.array([spec.up_bandwidth_hz for spec in fleet.specs]) / 1e6
    down_mhz = np.array([spec.down_bandwidth_hz for spec in fleet.specs]) / 1e6
    found = (
        _beyond("memory_gib", fleet.memory_bytes / GIB, devices, 0.001, 1024.0),
        _beyond("gflops_per_s", fleet.flops_per_s / 1e9, devices, 0.01, 1e6),
        _beyond("power_w", fleet.power_w, devices, 0.01, 3000.0),
        _beyond("up_bandwidth_mhz", up_mhz, specs, 0.001, 1e4),
        _beyond("down_bandwidth_mhz", down_mhz, specs, 0.001, 1e4),
        _beyond("up_mbps", links.up_capacity_bps / 1e6, devices, 0.0, 1e5),
        _beyond("down_mbps", links.down_capacity_bps / 1e6, devices, 0.0, 1e5),
    )
    return [line for line in found if line]


def _beyond(key: str, column: Floats, names: Sequence[str], least: float, most: float) -> str:
    """Say so where numbers that are there, above 0, lie outside a range; else nothing."""
    out = np.flatnonzero((column > most) | ((column > 0.0) & (column < least)))
    if not out.size:
        return ""
    others = f" and {out.size - 1} more" if out.size > 1 else ""
    value = float(column[out[0]])
    return (
        f"{key} of {names[out[0]]}{others} is {format_number(value)}, and from {least:g} to "
        f"{format_number(most)} is usual; is it in the unit that its name ends with?"
    )
