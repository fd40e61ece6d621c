"""The notes printed after a run."""

from __future__ import annotations

import numpy as np

from airtune.data.ledger import recorded_lines
from airtune.records import RunRecord
from airtune.units import format_seconds


def notes_of(record: RunRecord) -> tuple[str, ...]:
    """Return what the data lost, how many updates did not count and, if devices were late, why."""
    notes = [line.marked for line in recorded_lines(record.header)]
    never = sum(1 for row in record.rounds if not row["counts"]["ok"])
    lost = {
        name: sum(int(row["counts"][name]) for row in record.rounds)
        for name in ("failed", "refused", "late", "absent")
    }
    for name, count in lost.items():
        if count:
            notes.append(f"{count} updates did not count ({name}); devices.csv says why for each")
    if never and any(lost.values()):
        said = f"{never} of {len(record.rounds)} rounds gave no usable update"
        notes.append(said + _least_needed(record))
    return tuple(notes)


def _least_needed(record: RunRecord) -> str:
    """Return which of the late devices would have been back first, and after how long."""
    columns = record.devices
    needed_s = np.where(columns["status"] == "late", columns["predicted_s"], np.nan)
    if not np.isfinite(needed_s).any():
        return ""
    first = int(np.nanargmin(needed_s))
    return (
        f"; of the late devices {columns['name'][first]} needs least, about "
        f"{format_seconds(float(needed_s[first]))} a round: set a later deadline_s"
    )
