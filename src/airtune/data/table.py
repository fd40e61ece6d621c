"""Rows as they were read, in columns, each row knowing its file and line."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from airtune.errors import DataError
from airtune.plan import Ints

_SURROGATE = re.compile("[\ud800-\udfff]")
_LOOKED_AT = 100
"""Rows whose objects are looked into for what an error message lists."""
_NAMES_SHOWN = 30
_DEEPEST = 64
"""Lists and objects in one another, in a value; what walks them calls itself as often."""
FAULTS_SHOWN = 5
"""Faulty rows named in one message; more are only counted."""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of equal length. A value that a row lacks is None."""

    columns: Mapping[str, Sequence[object]]
    source: str
    file: Ints
    """Index into `files`, shape (rows,)."""
    line: Ints
    """Line in the file, or row of it where the format has no lines, from 1, shape (rows,)."""
    files: tuple[str, ...]

    def __len__(self) -> int:
        return int(self.line.shape[0])

    def place(self, row: int) -> str:
        """Return where a row came from, for an error message."""
        return f"{self.files[int(self.file[row])]}:{int(self.line[row])}"

    def take(self, rows: Ints) -> Table:
        """Return the chosen rows in the given order."""
        chosen = rows.tolist()
        columns = {name: [column[row] for row in chosen] for name, column in self.columns.items()}
        return Table(columns, self.source, self.file[rows], self.line[rows], self.files)

    def column(self, name: str) -> Sequence[object]:
        """Return one column.

        Raises:
            DataError: if there is none of that name.
        """
        if name not in self.columns:
            raise DataError(
                f"{self.source} has no column {name!r}; it has {self.described()}; map it with "
                "`data.columns`"
            )
        return self.columns[name]

    def described(self) -> str:
        """Return the names that can be mapped, those in objects with a dot, for an error message."""
        names = (
            dotted
            for name, values in self.columns.items()
            for dotted in _dotted(name, values[:_LOOKED_AT])
        )
        shown = list(itertools.islice(names, _NAMES_SHOWN + 1))
        more = ", ..." if len(shown) > _NAMES_SHOWN else ""
        return (", ".join(shown[:_NAMES_SHOWN]) or "none") + more

    def texts(self, name: str) -> list[str]:
        """Return a column of text; what a row lacks is blank, and a number is as it is written.

        Raises:
            DataError: if a value is no text; the first few are named with file and line.
        """
        values = ["" if is_missing(value) else value for value in self.column(name)]
        wrong = [
            isinstance(value, bool) or not isinstance(value, str | int | float) for value in values
        ]
        self.refuse(
            name, wrong, "must be text", lambda value: f"{value!r:.40} ({type(value).__name__})"
        )
        # columns of whole numbers with gaps are read as fractions
        whole = [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]
        return [str(value) for value in whole]

    def replaced(self, name: str, values: Sequence[object]) -> Table:
        """Return the table with other values in one column."""
        return replace(self, columns={**self.columns, name: values})

    def refuse(
        self,
        name: str,
        wrong: Sequence[bool],
        rule: str,
        show: Callable[[object], str] = lambda value: type(value).__name__,
    ) -> None:
        """Raise a DataError that names the first wrong rows of a column, if there are any."""
        rows = np.flatnonzero(np.asarray(wrong, bool)).tolist()
        if not rows:
            return
        values = self.columns[name]
        named = [
            f"{self.place(row)} has {'no value' if values[row] is None else show(values[row])}"
            for row in rows[:FAULTS_SHOWN]
        ]
        more = f", and {len(rows) - FAULTS_SHOWN} more" if len(rows) > FAULTS_SHOWN else ""
        raise DataError(f"column {name!r} {rule}: {', '.join(named)}{more}")


def _dotted(name: str, values: Sequence[object]) -> list[str]:
    """Return a column's name, or the dotted ones of what its objects hold."""
    held = [value for value in values if isinstance(value, Mapping)]
    keys = dict.fromkeys(key for value in held for key in value)
    return [
        dotted
        for key in keys
        for dotted in _dotted(f"{name}.{key}", [value.get(key) for value in held])
    ] or [name]


def alike(name: str, names: Iterable[str]) -> list[str]:
    """Return the name itself where it is among the names, else those that are written like it.

    Neither case nor the sign between words counts.

    >>> alike("site id", ["Site-ID", "SITE_ID", "site"]), alike("site", ["Site", "site"])
    (['Site-ID', 'SITE_ID'], ['site'])
    """
    found = [one for one in names if plain_name(one) == plain_name(name)]
    return [name] if name in found else found


def plain_name(name: str) -> str:
    """Return a column's name without case and with one sign between words."""
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())


def refuse_deep(table: Table) -> None:
    """Refuse values with more lists and objects in one another than data have.

    Raises:
        DataError: naming column and rows.
    """
    for name, values in table.columns.items():
        table.refuse(
            name,
            [isinstance(value, dict | list) and _is_deep(value) for value in values],
            f"must hold at most {_DEEPEST} lists and objects in one another",
        )


def _is_deep(value: object) -> bool:
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
        inner = (v.values() if isinstance(v, dict) else v for v in level)
        level = [v for values in inner for v in values if isinstance(v, dict | list)]
        if not level:
            return False
    return True


def is_missing(value: object) -> bool:
    """Say whether a row has no value here: none, not a number, blank text, or only such values."""
    if isinstance(value, str | bytes):
        return not value.strip()
    if isinstance(value, Mapping):
        return all(map(is_missing, value.values()))
    return value is None or (isinstance(value, float) and math.isnan(value))


def first_value(values: Iterable[object]) -> object:
    """Return the first value of a column that is not missing; None where all are.

    >>> first_value([None, " ", "a"])
    'a'
    """
    return next((value for value in values if not is_missing(value)), None)


def whole_characters(value: object) -> object:
    r"""Return a value in whose texts half a character, a lone surrogate, is U+FFFD.

    JSON can spell halves, as programs write it that cut a text between them; no tokenizer and no
    file takes one. Lists and mappings are searched.

    >>> whole_characters(["a \ud83d", "\ud83d\ude00"]) == ["a \ufffd", "\U0001f600"]
    True
    """
    if isinstance(value, str):
        if value.isascii() or not _SURROGATE.search(value):
            return value
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [whole_characters(item) for item in value]
    if isinstance(value, Mapping):
        return {whole_characters(key): whole_characters(item) for key, item in value.items()}
    return value


def table_from_rows(
    rows: Sequence[Mapping[str, object]], *, source: str, lines: Sequence[int] | None = None
) -> Table:
    """Return the rows of one source as columns; keys are kept in the order first seen.

    >>> table_from_rows([{"a": 1}, {"a": 2, "b": 3}], source="x").columns
    {'a': [1, 2], 'b': [None, 3]}
    """
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {str(whole_characters(name)): [row.get(name) for row in rows] for name in names}
    numbers = range(1, len(rows) + 1) if lines is None else lines
    return table_from_columns(columns, source=source, lines=numbers)


def table_from_columns(
    columns: Mapping[str, Sequence[object]], *, source: str, lines: Sequence[int] | None = None
) -> Table:
    """Return columns of equal length as the rows of one source; without `lines` they count from 1.

    >>> table_from_columns({"a": ["x", "y"]}, source="b").place(1)
    'b:2'
    """
    numbers = range(1, len(next(iter(columns.values()), ())) + 1) if lines is None else lines
    line = np.asarray(numbers, np.int64)
    return Table(columns, source, np.zeros(len(line), np.int64), line, (source,))


def name_labels(
    columns: Mapping[str, Sequence[object]], names: Mapping[str, Sequence[str]]
) -> dict[str, Sequence[object]]:
    """Return columns with a `label_name` beside the first that holds numbers of named classes.

    Numbers that name no class, -1 for instance, stand for labels that are not given.

    >>> name_labels({"label": [1, -1]}, {"label": ["no", "yes"]})
    {'label': [1, None], 'label_name': ['yes', None]}
    """
    named = dict(columns)
    for column, words in names.items():
        values = columns.get(column, ())
        if not all(value is None or isinstance(value, int) for value in values):
            continue
        known = [v if isinstance(v, int) and 0 <= v < len(words) else None for v in values]
        named[column] = known
        named.setdefault("label_name", [None if v is None else words[v] for v in known])
    return named


def join_tables(tables: Sequence[Table], *, source: str) -> Table:
    """Return the rows of several files of one source, one after the other.

    A file may lack columns that another has; its rows have no value there.

    Raises:
        DataError: if two files each have a column that the other has not.
    """
    widest = max(tables, key=lambda table: len(table.columns))
    for table in tables:
        if not set(table.columns) <= set(widest.columns):
            raise DataError(
                f"{table.source} has the columns {', '.join(table.columns)} but {widest.source} has "
                f"{', '.join(widest.columns)}; name one file as `data.source`, or one of the "
                "sub-folders as `data.subset`"
            )
    columns = {
        name: [v for table in tables for v in table.columns.get(name, [None] * len(table))]
        for name in widest.columns
    }
    return Table(
        columns,
        source,
        np.repeat(np.arange(len(tables)), [len(table) for table in tables]),
        np.concatenate([table.line for table in tables]),
        tuple(table.source for table in tables),
    )
