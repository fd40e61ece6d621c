"""A fleet's rows by kind: how many devices, and from which to which value each column goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from airtune.planner.result import DevicePlan

Range = tuple[float, float]
RANGED = ("memory_bytes", "peak_bytes", "pruned", "cut", "rank", "local_steps", "download_s", "compute_s", "upload_s",
          "finish_s", "upload_bytes", "download_bytes", "energy_j")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Group:
    """Devices of one kind that all hold the whole model, or are all cut."""

    kind: str
    devices: int
    fits: int
    """How many have the memory for what they are told."""
    feasible: tuple[str, ...]
    """Which choices the least and the largest of their memories leave; once where they are alike."""
    ranges: dict[str, Range]
    """Field of `DevicePlan` -> least and largest value; NaN where nobody took part."""


def groups_of(devices: Sequence[DevicePlan]) -> tuple[Group, ...]:
    """Return the groups in the order of their first devices."""
    members: dict[tuple[str, bool], list[DevicePlan]] = {}
    for row in devices:
        members.setdefault((row.kind, row.cut > 0), []).append(row)
    return tuple(
        Group(
            kind=kind,
            devices=len(rows),
            fits=sum(row.fits for row in rows),
            feasible=tuple(dict.fromkeys(end(rows, key=_memory).feasible for end in (min, max))),
            ranges={name: _range([float(getattr(row, name)) for row in rows]) for name in RANGED},
        )
        for (kind, _), rows in members.items()
    )


def span(values: Range, form: Callable[[float], str]) -> str:
    """Write a range; one value where both ends read alike.

    >>> span((1.0, 2.5), str), span((2.0, 2.0), str)
    ('1.0-2.5', '2.0')
    """
    low, high = form(values[0]), form(values[1])
    return low if low == high else f"{low}-{high}"


def _memory(row: DevicePlan) -> float:
    return row.memory_bytes


def _range(values: list[float]) -> Range:
    known = [value for value in values if np.isfinite(value)]
    return (min(known), max(known)) if known else (float("nan"), float("nan"))
