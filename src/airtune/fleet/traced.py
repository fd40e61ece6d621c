"""A link that follows measured traces: one file a device, or one for a shared link.

On a dedicated link each device follows a file of its own, dealt out by seed, from an offset drawn
by seed. On a shared link all devices follow the same file from the same offset, and divide its
air time.
"""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from airtune.errors import FleetError
from airtune.fleet.moment import Members, Moment
from airtune.fleet.section import SettingsSection, as_number
from airtune.fleet.trace import Trace, TraceTable, read_trace, tabulate
from airtune.keys import generator
from airtune.plan import Floats, Ints

OFFSETS = ("draw", "none")


@dataclass(frozen=True, slots=True)
class TraceMedium:
    """Settings of a traced link."""

    traces: tuple[Trace, ...]
    up_ratio: float | None
    """Uplink over downlink capacity; None = the uplink column is used as measured."""
    is_shared: bool
    draws_offset: bool = True

    @property
    def up_bandwidth_hz(self) -> float:
        """0: capacity is measured in bit/s."""
        return 0.0

    @property
    def down_bandwidth_hz(self) -> float:
        """0: capacity is measured in bit/s."""
        return 0.0

    def describe(self) -> str:
        """Return the assumptions in a few words."""
        files = f"{len(self.traces)} measured trace{'s' if len(self.traces) > 1 else ''}"
        if self.up_ratio is None:
            return f"{files}, uplink as measured"
        return f"{files}, uplink assumed {self.up_ratio:g} of the downlink"

    def place(self, link: str, members: Members, seed: int) -> TraceChannel:
        """Return the link with traces and offsets dealt out by (seed, link)."""
        count = members.device.shape[0]
        order = generator(seed, "trace", link).permutation(len(self.traces))
        hands = np.zeros(count, np.int64) if self.is_shared else np.arange(count)
        trace = order[hands % len(order)].astype(np.int64)
        table = tabulate(self.traces)
        start = generator(seed, "offset", link).random(1 if self.is_shared else count)
        offset = np.broadcast_to(start * float(self.draws_offset), count) * table.period_s[trace]
        return TraceChannel(members.device, trace, offset, table, self.up_ratio)


@dataclass(frozen=True, slots=True)
class TraceChannel:
    """A traced link with its devices; columns of shape (n,)."""

    device: Ints
    trace: Ints
    """Number of the file the device follows."""
    offset_s: Floats
    table: TraceTable
    up_ratio: float | None

    @property
    def is_radio(self) -> bool:
        """False: the columns are capacities in bit/s."""
        return False

    def at(self, moment: Moment) -> tuple[Floats, Floats]:
        """Return the uplink and downlink capacity in bit/s at the moment's time."""
        up, down = self.table.at(self.trace, self.offset_s + moment.time_s)
        return (up if self.up_ratio is None else self.up_ratio * down), down


def read_traced(section: SettingsSection, *, is_shared: bool) -> TraceMedium | None:
    """Read the settings and the files of a traced link; None where no trace could be read.

    Args:
        section: the link's `traces` settings; faults are noted there.
        is_shared: whether the link's devices share one trace.
    """
    traces = _read_files(section)
    ratio = _read_uplink(section, traces)
    draws = section.choice("offset", OFFSETS, "draw") == "draw"
    section.close()
    return TraceMedium(tuple(traces), ratio, is_shared, draws) if traces else None


def _read_files(section: SettingsSection) -> list[Trace]:
    patterns = section.texts("files")
    if not patterns:
        section.fault("files", "is missing; name one or more CSV files, * allowed")
    traces = []
    for pattern in patterns:
        found = sorted(glob.glob(pattern))
        if not found:
            section.fault("files", f"names no file: {pattern!r}")
        for path in found:
            try:
                traces.append(read_trace(Path(path)))
            except FleetError as error:
                section.fault("files", f"cannot be used: {error}")
    return traces


def _read_uplink(section: SettingsSection, traces: list[Trace]) -> float | None:
    """Return the stated ratio, or None for the measured column, which all files must have."""
    value = section.get("uplink")
    if value == "measured":
        lacking = [trace.name for trace in traces if trace.up_bps is None]
        if lacking:
            section.fault(
                "uplink",
                f"is measured, but {', '.join(lacking)} has no up_mbps column; "
                "state a ratio, 0.25 for instance",
            )
        silent = [t.name for t in traces if t.up_bps is not None and not np.any(t.up_bps > 0)]
        if silent:
            section.fault(
                "uplink",
                f"is measured, but {', '.join(silent)} never carries a bit up; "
                "state a ratio, 0.25 for instance",
            )
        return None
    ratio = as_number(value)
    if ratio is None or ratio <= 0:
        section.fault(
            "uplink",
            "must be measured (the up_mbps column is uplink capacity) or a "
            f"ratio above 0 of the downlink, 0.25 for instance, got {value!r}",
        )
        return None
    return ratio
