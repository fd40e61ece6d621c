"""Which run may have which device.

A device serves one run at a time, and no run overtakes another that waits for the same devices.
These are pure rules over the rows of runs; `runs` starts and ends processes by them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from airtune.deploy.labels import Labels, matches

QUEUED, RUNNING, DONE, FAILED, STOPPED = (
    "queued",
    "running",
    "finished:completed",
    "finished:failed",
    "finished:stopped",
)


@dataclass(frozen=True, slots=True)
class RunRow:
    """What is known of a run."""

    number: int
    name: str
    operator: str
    status: str
    began: str
    """When it was submitted."""
    ended: str = ""
    where: Labels = field(default_factory=dict)
    """Labels of the devices that it asks for; none = all devices."""
    devices: tuple[str, ...] | None = None
    """Its devices; None = not settled yet, it holds all that match."""
    evicted: tuple[str, ...] = ()
    """Devices that an operator took out of it."""
    folder: str = ""
    """Name of its folder in runs/; empty = it has none yet."""

    def holds(self, name: str, labels: Labels) -> bool:
        """Return whether a device is this run's, or is kept for it."""
        if name in self.evicted:
            return False
        return matches(labels, self.where) if self.devices is None else name in self.devices


def blockers(row: RunRow, rows: Iterable[RunRow], devices: Mapping[str, Labels]) -> list[int]:
    """Return the numbers of the runs that a queued run waits for; none = it may start.

    Those are the runs that run or were queued before it, and share a device with it.

    Args:
        row: the queued run.
        rows: all runs.
        devices: labels of every device that is known, by name.
    """
    return sorted(
        other.number
        for other in rows
        if (other.status == RUNNING or (other.status == QUEUED and other.number < row.number))
        and _share_devices(row, other, devices)
    )


def _share_devices(row: RunRow, other: RunRow, devices: Mapping[str, Labels]) -> bool:
    if row.devices is None and other.devices is None and row.where == other.where:
        return True  # whoever comes matches both
    settled: dict[str, Labels] = {name: {} for one in (row, other) for name in one.devices or ()}
    return any(
        row.holds(name, labels) and other.holds(name, labels)
        for name, labels in (settled | dict(devices)).items()
    )


def holder(name: str, labels: Labels, rows: Iterable[RunRow]) -> int | None:
    """Return the number of the running run that has a device; None = it is free.

    A run whose devices are settled comes before one that still waits for some, and an earlier run
    before a later one.
    """
    holding = [row for row in rows if row.status == RUNNING and row.holds(name, labels)]
    first = min(holding, key=lambda row: (row.devices is None, row.number), default=None)
    return None if first is None else first.number
