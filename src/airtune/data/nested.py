"""Dotted names: `meta.label` is what the objects in column `meta` hold under `label`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from airtune.data.table import Table, alike
from airtune.errors import DataError

_INDEX = re.compile(r"\d{1,9}", re.ASCII)


def with_nested(table: Table, names: Iterable[str]) -> Table:
    """Return a table with a column more for each dotted name that leads into objects or lists.

    A column of that very name comes first. A number picks from a list: `answers.text.0`. Rows in
    which a part is not there have no value.

    Raises:
        DataError: if a name leads into a column in which no row has it.
    """
    for name in names:
        if alike(name, table.columns):
            continue
        column, path = _entered(name, table)
        if not path:
            continue
        values = [_at(value, path) for value in table.columns[column]]
        if not any(found for found, _ in values):
            raise DataError(
                f"{table.source} has no {name!r} in column {column!r}; it has {table.described()}; "
                "map it with `data.columns`"
            )
        table = table.replaced(name, [value for _, value in values])
    return table


def _entered(name: str, table: Table) -> tuple[str, Sequence[str]]:
    """Return the column that a dotted name begins with, and the path in it; () where there is none."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        found = alike(".".join(parts[:length]), table.columns)
        if len(found) == 1 and any(isinstance(v, Mapping | list) for v in table.columns[found[0]]):
            return found[0], parts[length:]
    return name, ()


def _at(value: object, path: Sequence[str]) -> tuple[bool, object]:
    """Return whether a path is there, and what stands at its end."""
    for part in path:
        if isinstance(value, Mapping):
            keys = alike(part, value)
            if not keys:
                return False, None
            value = value[keys[0]]
        elif isinstance(value, list) and _INDEX.fullmatch(part) and int(part) < len(value):
            value = value[int(part)]
        else:
            return False, None
    return True, value
