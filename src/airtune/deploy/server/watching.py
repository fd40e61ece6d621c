"""How a run gets on, read from its records while they are written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from airtune.records import RunRecord, read_run


def summary(folder: Path) -> dict[str, Any]:
    """Return the state of a run in plain values.

    Raises:
        CheckpointError: if the folder is no run or is damaged.
    """
    record = read_run(folder)
    rounds = [_round(row) for row in record.rounds]
    return {
        "folder": str(folder),
        "name": record.header["name"],
        "method": record.header["method"]["name"],
        "rounds": record.header["rounds"],
        "done": len(rounds),
        "finished": record.results is not None,
        "upload_bytes": sum(float(row["upload_bytes"]) for row in record.rounds),
        "download_bytes": sum(float(row["download_bytes"]) for row in record.rounds),
        "last_rounds": rounds,
        "devices": _devices(record),
        "results": record.results,
    }


def _round(row: Mapping[str, Any]) -> dict[str, Any]:
    counts, validation = row["counts"], row.get("validation") or {}
    return {
        "round": row["round"],
        "round_s": float(row["round_s"]),
        "ok": counts["ok"],
        "lost": sum(counts.values()) - counts["ok"],
        "train_loss": row["train_loss"],
        "validation": validation.get("loss"),
    }


def _devices(record: RunRecord) -> list[dict[str, Any]]:
    """Return the last row of every device."""
    columns = record.devices
    if not len(columns.get("round", ())):
        return []
    last = {str(name): index for index, name in enumerate(columns["name"])}
    finish = {name: float(columns["finish_s"][index]) for name, index in last.items()}
    slowest = max(finish, key=lambda name: np.nan_to_num(finish[name], nan=-1.0))
    rows = []
    for name, index in sorted(last.items()):
        row: dict[str, Any] = {
            key: _plain(columns[key][index])
            for key in ("finish_s", "compute_s", "upload_s", "upload_bytes", "peak_bytes", "round")
        }
        row |= {
            "name": name,
            "status": str(columns["status"][index]),
            "slowest": name == slowest,
            "why": _why(columns, index),
        }
        rows.append(row)
    return rows


def _why(columns: Mapping[str, Any], place: int) -> str:
    """Return why an update did not count; of one that did, the plan's reason is of no news."""
    return "" if columns["status"][place] == "ok" else str(columns["reason"][place])


def _plain(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
