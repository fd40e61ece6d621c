"""Rows of `devices.csv`: a device and round each, held as columns."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_TEXT = ("name", "status", "codec", "upload_codec", "reason")
_WHOLE = ("round", "device", "rank", "cut", "local_steps", "samples", "rank_left")
DEVICE_COLUMNS = (
    "round", "device", "name", "status", "prune_heads", "prune_ffn", "pruned", "rank", "cut",
    "codec", "upload_codec", "share", "bandwidth_hz", "local_steps", "download_s", "judging_s", "compute_s",
    "upload_s", "server_s", "wait_s", "finish_s", "predicted_s", "download_bytes", "upload_bytes",
    "step_down_bytes", "step_up_bytes", "flops", "peak_bytes", "memory_bytes",
    "energy_j", "loss_first", "loss_last", "samples", "importance", "rank_left", "reason",
)  # fmt: skip
"""Columns of `devices.csv`, in order."""

Columns = dict[str, NDArray[Any]]
_LATER = frozenset({
    "judging_s", "wait_s", "upload_codec", "server_s", "predicted_s", "step_down_bytes",
    "step_up_bytes",
})  # fmt: skip
"""Columns that older runs lack; they are read as not known."""


def header_line(names: Sequence[str] = DEVICE_COLUMNS) -> bytes:
    """Return the first line of the file."""
    return (",".join(names) + "\n").encode()


def names_in(content: bytes) -> tuple[str, ...] | None:
    """Return the columns that the first line of a file names; None if it is not one of ours."""
    first = content.partition(b"\n")[0].decode(errors="replace")
    names = tuple(first.split(","))
    lacks = set(DEVICE_COLUMNS) - set(names)
    mine = tuple(name for name in DEVICE_COLUMNS if name not in lacks)
    return names if names == mine and lacks <= _LATER else None


def format_rows(columns: Mapping[str, ArrayLike], names: Sequence[str] = DEVICE_COLUMNS) -> bytes:
    """Return the lines of one round, in the columns that the file has.

    Raises:
        ValueError: if a column is missing, unknown or of another length.
    """
    wrong = sorted(set(columns) ^ set(DEVICE_COLUMNS))
    if wrong:
        raise ValueError(
            f"the columns of a round must be exactly {', '.join(DEVICE_COLUMNS)}; "
            f"missing or unknown: {', '.join(wrong)}"
        )
    rows = np.atleast_1d(np.asarray(columns["device"])).shape[0]
    cells = [_cells(name, columns[name], rows) for name in names]
    lines = map(",".join, zip(*cells, strict=True))
    return "".join(f"{line}\n" for line in lines).encode()


def _cells(name: str, column: ArrayLike, rows: int) -> list[str]:
    """Return a column as the cells of a CSV file; joining them is twice as fast as csv.writer."""
    kind = np.str_ if name in _TEXT else np.int64 if name in _WHOLE else np.float64
    values = np.asarray(column)
    if values.shape not in ((), (rows,)):
        raise ValueError(f"column {name} must have shape ({rows},), got {values.shape}")
    if kind is np.str_:
        cells = [_text_cell(text) for text in values.reshape(-1).tolist()]
    else:
        numbers = values.reshape(-1).astype(kind, casting="same_kind")
        cells = list(map(repr, numbers.tolist()))
        if kind is np.float64 and np.isnan(numbers).any():
            cells = ["" if cell == "nan" else cell for cell in cells]
    return cells if values.shape else cells * rows


def _text_cell(text: str) -> str:
    # a row is one line of the file, so that a torn line can be told from a whole one
    text = text if text.isprintable() else " ".join(text.split())
    return '"' + text.replace('"', '""') + '"' if "," in text or '"' in text else text


def parse_rows(table: bytes, names: Sequence[str] = DEVICE_COLUMNS) -> Columns:
    """Return the columns of lines that `format_rows` made."""
    rows = list(csv.reader(io.StringIO(table.decode(), newline="")))
    cells = zip(*rows, strict=True) if rows else ((),) * len(names)
    found = {name: _column(name, cell) for name, cell in zip(names, cells, strict=True)}
    blank = [""] * len(rows)
    return {name: found[name] if name in found else _column(name, blank) for name in DEVICE_COLUMNS}


def _column(name: str, cells: Sequence[str]) -> NDArray[Any]:
    if name in _TEXT:
        return np.array(cells, dtype=object)
    if name in _WHOLE:
        return np.array([int(cell) for cell in cells], dtype=np.int64)
    return np.array([float(cell) if cell else math.nan for cell in cells], dtype=np.float64)


def join(tables: Sequence[Columns]) -> Columns:
    """Return the columns of several rounds as one."""
    empty = parse_rows(b"")
    return {name: np.concatenate([empty[name], *(t[name] for t in tables)]) for name in empty}
