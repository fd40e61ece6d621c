"""Labels to class ids, by a map that does not depend on the order of the rows."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from airtune.data.ledger import DataLedger, RowCounts
from airtune.data.table import Table, is_missing
from airtune.errors import DataError
from airtune.model.classes import order_like
from airtune.plan import Ints

_WHOLE = re.compile(r"-?\d+\.0+", re.ASCII)


def label_map(
    table: Table,
    column: str,
    *,
    name_column: str | None,
    labels: tuple[str, ...],
    known: Sequence[str] = (),
) -> dict[str, str]:
    """Return the name of every label, in the order of the class ids; rows without one count not.

    The ids follow `labels` where given: by name or by value, or by place where
    they are words and the data count 0, 1, 2. Else they follow `known`, the classes of the
    model's own head, where they are the same ones; else the labels sorted: numbers by size, words
    by alphabet. Names come from `name_column`, else a label is its own name.

    Raises:
        DataError: if labels have two names, are listed twice, are not in `labels`, or are fewer than 2.
    """
    keys = label_keys(table, column)
    names = _names(table, keys, name_column)
    found = dict.fromkeys(sorted({key for key in keys if key is not None}, key=_order))
    if labels:
        by_name = {names[key]: key for key in found}
        given = {by_name.get(label, _key(label) or label): label for label in labels}
        if len(given) < len(labels):
            raise DataError(f"data.labels names one label twice: {', '.join(labels)}")
        if found and not any(map(_is_number, given)) and all(map(_is_number, found)):
            given = {str(place): label for place, label in enumerate(labels)}
        strange = [key for key in found if key not in given]
        if strange:
            name = names[strange[0]]
            named = "" if name == strange[0] else f", named {name!r}"
            raise DataError(
                f"{table.source} has the label {strange[0]!r}{named}, which `data.labels` does not list "
                f"({', '.join(labels)}); add it there"
            )
        return given
    if len(found) < 2:
        raise DataError(
            f"classification needs at least 2 labels, {table.source} has "
            f"{', '.join(found) or 'none'} in column {column!r}"
        )
    labels_found = list(found)
    order = order_like([names[key] for key in labels_found], known) or range(len(found))
    return {labels_found[index]: names[labels_found[index]] for index in order}


def label_keys(table: Table, column: str) -> list[str | None]:
    """Return a label column as text, None where a row has no label.

    A whole number is written without a fraction, so that 1, 1.0, "1" and "1.0", as different
    kinds of file hold it, are one label; true and false are written as JSON has them.

    Raises:
        DataError: if a label is neither text nor a whole number.
    """
    values = table.column(column)
    keys = [_key(value) for value in values]
    wrong = [key is None and not is_missing(value) for key, value in zip(keys, values, strict=True)]
    rule = "must be text or a whole number, one class a row and no measure"
    table.refuse(column, wrong, rule, repr)
    return keys


def spelling_ledger(train: Sequence[str | None], test: Sequence[str | None]) -> DataLedger:
    """Count the rows of both parts whose label has a more frequent spelling, and name the labels.

    >>> print(*spelling_ledger(["Good", "good", "good", "bad"], ["bad"]).notes)
    labels 'Good' and 'good' are two classes
    """
    other = other_spellings([*train, *test])
    rows, test_rows = (
        RowCounts(respelt=sum(key in other for key in keys)) for keys in (train, test)
    )
    notes = (f"labels {rare!r} and {usual!r} are two classes" for rare, usual in other.items())
    return DataLedger(rows, test_rows, tuple(notes))


def other_spellings(keys: Sequence[str | None]) -> dict[str, str]:
    """Return each label that another, more frequent one equals but for case, blanks or form.

    >>> other_spellings(["Positive", "positive", "positive", "negative"])
    {'Positive': 'positive'}
    """
    counts = Counter(key for key in keys if key is not None)
    best: dict[str, str] = {}
    for key in sorted(counts, key=lambda key: (-counts[key], key)):
        best.setdefault(_folded(key), key)
    return {key: best[_folded(key)] for key in sorted(counts) if best[_folded(key)] != key}


def _folded(key: str) -> str:
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", key).casefold()).strip()


def class_ids(table: Table, column: str, classes: Mapping[str, str]) -> Ints:
    """Return the class id of every row, shape (rows,).

    Raises:
        DataError: if a label is not in the map, as a test set may have it.
    """
    ids = {key: index for index, key in enumerate(classes)}
    keys = label_keys(table, column)
    table.refuse(
        column,
        [key not in ids for key in keys],
        f"must be one of the labels seen in training ({', '.join(classes)})",
        repr,
    )
    return np.array([ids[key] for key in keys if key is not None], np.int64)


def _key(value: object) -> str | None:
    if isinstance(value, str):
        text = value.strip()
        return (text.partition(".")[0] if _WHOLE.fullmatch(text) else text) or None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else None
    return str(value) if isinstance(value, int) else None


def _order(key: str) -> tuple[int, int, str]:
    return (0, int(key), "") if _is_number(key) else (1, 0, key)


def _is_number(key: str) -> bool:
    digits = key.removeprefix("-")
    return digits.isascii() and digits.isdigit()


def _names(table: Table, keys: Sequence[str | None], column: str | None) -> dict[str, str]:
    """Return the name of each label; one that nobody names is its own name."""
    words = [None] * len(keys) if column is None else table.texts(column)
    names: dict[str, str] = {}
    for row, (key, word) in enumerate(zip(keys, words, strict=True)):
        if key is None:
            continue
        name = word or key
        if names.setdefault(key, name) != name:
            raise DataError(
                f"{table.place(row)}: label {key!r} is named {name!r} here and {names[key]!r} "
                f"elsewhere; leave `label_name` out of `data.columns`"
            )
    return names
