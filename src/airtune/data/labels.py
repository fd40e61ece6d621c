"""Labels to class ids, by a map that does not depend on the order of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from airtune.data.table import Table
from airtune.errors import DataError
from airtune.model.classes import order_like
from airtune.plan import Ints


def label_map(
    table: Table, column: str, *, name_column: str | None, labels: tuple[str, ...],
    known: Sequence[str] = (),
) -> dict[str, str]:  # fmt: skip
    """Return the name of every label, in the order of the class ids.

    The ids follow `labels` where given (by name or by value); else `known`, the classes of the
    model's own head, where they are the same ones; else the labels sorted: numbers by size, words
    by alphabet. Names come from `name_column`, else a label is its own name.

    Raises:
        DataError: if labels are missing, have two names, are not in `labels`, or are fewer than 2.
    """
    keys = label_keys(table, column)
    names = _names(table, keys, name_column)
    found = dict.fromkeys(sorted(set(keys), key=_order))
    if labels:
        by_name = {names[key]: key for key in found}
        strange = [key for key in found if key not in labels and names[key] not in labels]
        if strange:
            raise DataError(
                f"{table.source} has the label {strange[0]!r}, which `data.labels` does not list "
                f"({', '.join(labels)})"
            )
        return {by_name.get(label, label): label for label in labels}
    if len(found) < 2:
        raise DataError(
            f"classification needs at least 2 labels, {table.source} has "
            f"{', '.join(found) or 'none'} in column {column!r}"
        )
    keys = list(found)
    order = order_like([names[key] for key in keys], known) or range(len(keys))
    return {keys[place]: names[keys[place]] for place in order}


def label_keys(table: Table, column: str) -> list[str]:
    """Return a label column as text; a whole number is written without a fraction.

    Raises:
        DataError: if a row has no label, or one that is neither text nor a whole number.
    """
    keys = [_key(value) for value in table.column(column)]
    table.refuse(column, [key is None for key in keys], "must be text or a whole number", repr)
    return [str(key) for key in keys]


def class_ids(table: Table, column: str, classes: Mapping[str, str]) -> Ints:
    """Return the class id of every row, shape (rows,).

    Raises:
        DataError: if a label is not in the map, as a test set may have it.
    """
    ids = {key: place for place, key in enumerate(classes)}
    keys = label_keys(table, column)
    table.refuse(
        column, [key not in ids for key in keys],
        f"must be one of the labels seen in training ({', '.join(classes)})", repr,
    )  # fmt: skip
    return np.array([ids[key] for key in keys], np.int64)


def _key(value: object) -> str | None:
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else None
    return str(value) if isinstance(value, int) else None


def _order(key: str) -> tuple[int, int, str]:
    digits = key.removeprefix("-")
    return (0, int(key), "") if digits.isascii() and digits.isdigit() else (1, 0, key)


def _names(table: Table, keys: list[str], column: str | None) -> dict[str, str]:
    if column is None:
        return {key: key for key in keys}
    names: dict[str, str] = {}
    for row, (key, name) in enumerate(zip(keys, table.texts(column), strict=True)):
        if names.setdefault(key, name) != name:
            raise DataError(
                f"{table.place(row)}: label {key!r} is named {name!r} here and {names[key]!r} "
                f"elsewhere; leave `label_name` out of `data.columns`"
            )
    return names
