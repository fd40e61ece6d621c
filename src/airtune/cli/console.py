"""What the commands write: tables and sentences for people, one JSON document for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from airtune.errors import AirtuneError
from airtune.records import METRICS, main_metric

_NUMBER_WIDTH = 28
"""Longer cells are sentences, even where they begin with a digit."""
_SENTENCE_WIDTH = 24
"""Sentences are broken into lines of at least so many characters on a narrow screen."""
_GAP = 2
"""Characters between two columns."""


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document; numbers that are not finite become null."""
    print(json.dumps(_finite(document), indent=2))


def print_line(text: str) -> None:
    """Print a line as it is; paths and commands are not broken, so that they can be copied."""
    Console(soft_wrap=True, highlight=False, emoji=False).print(text, markup=False)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; columns but the first are aligned to the right where they hold numbers.

    A table wider than the screen breaks its sentences, and goes on below, under its first column
    again, where that is not enough.
    """
    console = Console(highlight=False, emoji=False)
    width = console.width
    listed = [_Column.of(index, name, rows) for index, name in enumerate(columns)]
    for number, sheet in enumerate(_sheets(listed, width)):
        table = Table(
            title=(title or None) if number == 0 else None,
            title_justify="left",
            box=None,
            pad_edge=False,
            padding=(0, 1),
        )
        for column in sheet:
            table.add_column(
                column.name,
                justify="right" if column.is_numeric else "left",
                no_wrap=column.is_whole,
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(escape(row[column.place]) for column in sheet))
        # names and numbers are not broken, however narrow the screen
        least = sum(column.least + _GAP for column in sheet) - _GAP
        console.width = max(width, least)
        console.print(table)


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of a table."""

    place: int
    name: str
    is_numeric: bool
    least: int
    """The narrowest it may be, in characters."""

    @classmethod
    def of(cls, place: int, name: str, rows: Sequence[Sequence[str]]) -> _Column:
        """Look at a column's cells."""
        cells = [row[place] for row in rows]
        numeric = place > 0 and bool(cells) and all(_starts_numeric(cell) for cell in cells)
        width = max(map(cell_len, [name, *cells]))
        is_whole = numeric or place == 0
        return cls(place, name, numeric, width if is_whole else min(width, _SENTENCE_WIDTH))

    @property
    def is_whole(self) -> bool:
        """Whether its cells are never broken."""
        return self.is_numeric or self.place == 0


def _sheets(columns: Sequence[_Column], width: int) -> list[list[_Column]]:
    """Deal columns to tables of at most this width, the first column in each."""
    first, *others = columns
    sheets, used = [[first]], first.least
    for column in others:
        used += _GAP + column.least
        if used > width and len(sheets[-1]) > 1:
            sheets.append([first])
            used = first.least + _GAP + column.least
        sheets[-1].append(column)
    return sheets


def print_quality(results: Mapping[str, Any]) -> None:
    """Print the table of what a run ended with.

    Args:
        results: as in `result.json`.
    """
    keys = (
        ("before", "initial"),
        ("best validation", "validation_best"),
        ("last validation", "validation_last"),
        ("test", "test"),
    )
    parts = {label: results.get(key) or {} for label, key in keys}
    seen = {name for part in parts.values() for name in part}
    shown = [metric for name, metric in METRICS.items() if name in seen]
    rows = [
        [
            split,
            *(metric.write(metric.of(part)) for metric in shown),
            main_metric(part).write(main_metric(part).worst_of(part)),
        ]
        for split, part in parts.items()
        if part
    ]
    print_table("", ["quality", *(metric.label for metric in shown), "worst tenth"], rows)


def print_error(error: AirtuneError, *, as_json: bool) -> None:
    """Print an error: on the error stream for people, as a document for programs."""
    if as_json:
        print_json({"error": error.as_document()})
    else:
        _errors().print(f"[bold red]error:[/] {escape(str(error))}")


def print_note(text: str) -> None:
    """Print a line on the error stream, where it does not mix with results."""
    _errors().print(escape(text))


def _errors() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


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
