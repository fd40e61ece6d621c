"""Comma, semicolon and tab separated values, as spreadsheets and databases write them."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from airtune.data.table import Table, table_from_columns
from airtune.errors import DataError

_SIGNS = (",", ";", "\t", "|")
_LOOKED_AT = 50
"""Rows that decide which sign separates values."""
_QUOTINGS: Sequence[Mapping[str, Any]] = ({}, {"escapechar": "\\", "doublequote": False})
"""Ways to write a quote inside a quoted value, tried in turn: twice, after a backslash."""
_UNQUOTED: Mapping[str, Any] = {"quoting": csv.QUOTE_NONE}
"""Tab separated files often take a quote as any other character."""
_LONGEST = 2**31 - 1
"""Characters of a value; Python's own limit is 131,072."""


def read_separated(text: str, path: Path, *, usual: str) -> Table:
    """Return the rows of a file of separated values, the first line being the head.

    The separating sign is the one of `, ; tab |` that cuts head and rows into equally many values,
    or what a first line `sep=;` says. Blank rows and columns without name and values are skipped.

    Args:
        text: of the file.
        path: named in errors.
        usual: the sign where several or none would do.

    Raises:
        DataError: if a row has another number of values than the head, a quote is not closed, or
            two columns have one name; the line is named.
    """
    csv.field_size_limit(_LONGEST)
    skipped, text, sign = _declared(text)
    sign = sign or _separator(text, usual)
    numbered = _numbered(text, path, sign)
    place, head = next(numbered, (0, []))
    names = _names(head, f"{path}:{place + skipped}")
    rows: list[list[str]] = []
    lines: list[int] = []
    for number, row in numbered:
        rows.append(_fitted(row, len(names), f"{path}:{number + skipped}"))
        lines.append(number + skipped)
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    return table_from_columns(columns, source=str(path), lines=lines)


def _declared(text: str) -> tuple[int, str, str | None]:
    """Take off a first line `sep=;`; returns lines taken off, the rest, and the sign."""
    first, _, rest = text.partition("\n")
    said = first.strip().lower()
    if said.startswith("sep=") and len(said) == len("sep=;"):
        return 1, rest, said[-1]
    return 0, text, None


def _separator(text: str, usual: str) -> str:
    def agreement(sign: str) -> tuple[float, int]:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=sign)
        widths = [len(row) for row in itertools.islice(reader, _LOOKED_AT) if row]
        if not widths or widths[0] < 2:
            return 0.0, 0
        return widths.count(widths[0]) / len(widths), widths[0]

    return max((usual, *_SIGNS), key=agreement)


def _numbered(text: str, path: Path, sign: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank with the lines they end in."""
    rows = _parsed(text, path, sign)
    return ((number, row) for number, row in rows if any(map(str.strip, row)))


def _parsed(text: str, path: Path, sign: str) -> list[tuple[int, list[str]]]:
    faults = []
    for quoting in (*_QUOTINGS, *([_UNQUOTED] if sign == "\t" else [])):
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=sign, strict=True, **quoting)
        try:
            return [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            faults.append(f"{path}:{reader.line_num}: not valid CSV ({error})")
    raise DataError(f"{faults[0]}; a quote inside a quoted value is written twice")


def _names(head: Sequence[str], where: str) -> list[str]:
    """Return the names of the columns, without blank ones at the end; none may stand twice."""
    names = [name.strip() for name in head]
    while names and not names[-1]:
        names.pop()
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"{where}: the head names {twice!r} in the columns "
            f"{', '.join(str(at) for at, name in enumerate(names, 1) if name == twice)}; give "
            "each a name of its own"
        )
    return [name or f"column {at}" for at, name in enumerate(names, 1)]


def _fitted(row: list[str], width: int, where: str) -> list[str]:
    """Return a row without blank values beyond the head."""
    while len(row) > width and not row[-1].strip():
        row.pop()
    if len(row) != width:
        raise DataError(f"{where}: a row must have {width} values as the head has, got {len(row)}")
    return row
