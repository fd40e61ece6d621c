"""Measured capacity over time, from CSV files with `time_s,down_mbps[,up_mbps]`.

A value holds from its second to the next row, so missing seconds keep the last value seen. A zero
row is an outage. Behind its last row (which lasts as long as the median step) a trace starts
again; a per-device offset sets devices on the same file apart.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from airtune.errors import FleetError
from airtune.fleet.section import as_number
from airtune.plan import Floats, Ints

_COLUMNS = (["time_s", "down_mbps"], ["time_s", "down_mbps", "up_mbps"])


@dataclass(frozen=True, slots=True)
class Trace:
    """One file: step functions of time, in columns of shape (rows,)."""

    name: str
    time_s: Floats
    """Rising from 0."""
    down_bps: Floats
    up_bps: Floats | None
    period_s: float
    """Length after which the trace starts again."""


@dataclass(frozen=True, slots=True)
class TraceTable:
    """Several traces laid end to end, so that one search answers for every device at once."""

    start_s: Floats
    """Shifted row times: trace k begins at `k * stride_s`, shape (all rows,)."""
    down_bps: Floats
    up_bps: Floats
    """Zeros where a trace has no uplink."""
    period_s: Floats
    """Shape (traces,)."""
    stride_s: float

    def at(self, trace: Ints, time_s: Floats) -> tuple[Floats, Floats]:
        """Return the up- and downlink of each device's trace at its own time.

        Args:
            trace: number of the device's trace, shape (n,).
            time_s: seconds since its start, wrapped around its length, shape (n,).

        Returns:
            Uplink and downlink in bit/s, each of shape (n,).
        """
        wrapped = np.mod(time_s, self.period_s[trace])
        row = np.searchsorted(self.start_s, trace * self.stride_s + wrapped, side="right") - 1
        return self.up_bps[row], self.down_bps[row]


def tabulate(traces: Sequence[Trace]) -> TraceTable:
    """Lay traces end to end."""
    stride = float(np.ceil(max(trace.period_s for trace in traces))) + 1.0
    starts = [trace.time_s + index * stride for index, trace in enumerate(traces)]
    ups = [np.zeros_like(t.down_bps) if t.up_bps is None else t.up_bps for t in traces]
    return TraceTable(
        start_s=np.concatenate(starts),
        down_bps=np.concatenate([trace.down_bps for trace in traces]),
        up_bps=np.concatenate(ups),
        period_s=np.array([trace.period_s for trace in traces]),
        stride_s=stride,
    )


def read_trace(path: Path) -> Trace:
    """Read a CSV trace.

    Args:
        path: a file whose first row is `time_s,down_mbps` or `time_s,down_mbps,up_mbps`.

    Returns:
        The trace, its time shifted to begin at 0.

    Raises:
        FleetError: if the file cannot be read, a row is malformed (the line is named), times do
            not rise, fewer than two rows are there, or no row carries anything.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = next(csv.reader([file.readline()]), [])
            rows = list(_rows(path, [name.strip() for name in header], csv.reader(file)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FleetError(f"trace {path} cannot be read: {error}; give a CSV file") from error
    if len(rows) < 2:
        raise FleetError(f"trace {path} needs at least two rows of numbers, got {len(rows)}")
    table = np.array(rows, np.float64)
    if not np.any(table[:, 1] > 0):
        raise FleetError(f"trace {path} never carries a bit: every down_mbps is 0")
    time_s = table[:, 0] - table[0, 0]
    up = table[:, 2] * 1e6 if table.shape[1] == 3 else None
    period = float(time_s[-1] + np.median(np.diff(time_s)))
    return Trace(path.name, time_s, table[:, 1] * 1e6, up, period)


def _rows(path: Path, header: list[str], lines: Iterator[list[str]]) -> Iterator[list[float]]:
    if header not in _COLUMNS:
        raise FleetError(
            f"trace {path} must start with the row time_s,down_mbps or "
            f"time_s,down_mbps,up_mbps, got {','.join(header)!r}"
        )
    before = -np.inf
    for number, line in enumerate(lines, start=2):
        if not line:
            continue
        cells = [as_number(cell) for cell in line]
        values = [cell for cell in cells if cell is not None]
        if len(line) != len(header) or len(values) != len(line):
            raise FleetError(
                f"trace {path}, line {number}: needs {len(header)} numbers, got {','.join(line)!r}"
            )
        if min(values[1:]) < 0:
            raise FleetError(
                f"trace {path}, line {number}: a rate must be at least 0, got {min(values[1:]):g}"
            )
        if values[0] <= before:
            raise FleetError(
                f"trace {path}, line {number}: time_s must rise, got {values[0]:g} after "
                f"{before:g}; sort the rows, each once"
            )
        before = values[0]
        yield values
