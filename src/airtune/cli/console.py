"""What the commands write: tables and sentences for people, one JSON document for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from airtune.errors import AirtuneError
from airtune.records import METRICS, main_metric

_NUMBER_WIDTH = 28
"""Longer cells are sentences, even where they begin with a digit."""


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document; numbers that are not finite become null."""
    print(json.dumps(_finite(document), indent=2))


def print_line(text: str) -> None:
    """Print a line as it is; paths and commands are not broken, so that they can be copied."""
    Console(soft_wrap=True, highlight=False).print(text, markup=False)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; columns but the first are aligned to the right where they hold numbers."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for place, column in enumerate(columns):
        cells = [row[place] for row in rows]
        numeric = place > 0 and bool(cells) and all(_starts_numeric(cell) for cell in cells)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console = Console(highlight=False)
    # A table wider than the screen is left to the terminal, which breaks lines and not cells.
    natural = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    console.width = max(console.width, natural)
    console.print(table)


def print_quality(results: Mapping[str, Any]) -> None:
    """Print the table of what a run ended with.

    Args:
        results: as in `result.json`.
    """
    keys = ("before", "initial"), ("best validation", "validation_best"), (
        "last validation", "validation_last"), ("test", "test")  # fmt: skip
    parts = {label: results.get(key) or {} for label, key in keys}
    seen = {name for part in parts.values() for name in part}
    shown = [metric for name, metric in METRICS.items() if name in seen]
    rows = [
        [split, *(metric.write(metric.of(part)) for metric in shown),
         main_metric(part).write(main_metric(part).worst_of(part))]
        for split, part in parts.items() if part
    ]  # fmt: skip
    print_table("", ["quality", *(metric.label for metric in shown), "worst tenth"], rows)


def print_error(error: AirtuneError, *, as_json: bool) -> None:
    """Print an error: on the error stream for people, as a document for programs."""
    if as_json:
        print_json({"error": {"kind": type(error).__name__, "message": str(error),
                              "exit_code": error.exit_code}})  # fmt: skip
    else:
        _errors().print(f"[bold red]error:[/] {escape(str(error))}")


def print_note(text: str) -> None:
    """Print a line on the error stream, where it does not mix with results."""
    _errors().print(escape(text))


def _errors() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False)


def _starts_numeric(cell: str) -> bool:
    is_short = len(cell) <= _NUMBER_WIDTH
    return cell in {"", "-"} or (is_short and cell.lstrip("+-<>=~ ")[:1].isdigit())


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
