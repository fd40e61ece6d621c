"""From a data spec to the rows of training and test: columns, classes, and what became of rows.

This is the one inspection of the data: `init` and `plan` read it as a run does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from airtune.data.columns import resolve_columns
from airtune.data.conversation import join_prompts, read_conversations
from airtune.data.draw import at_most, set_aside
from airtune.data.embedded import EMBEDDED_PREFIX
from airtune.data.labels import label_keys, label_map, spelling_ledger
from airtune.data.ledger import UNSUPPORTED, DataLedger, RowCounts
from airtune.data.nested import with_nested
from airtune.data.read import read_rows
from airtune.data.spec import DataSpec
from airtune.data.table import Table, is_missing, join_tables, whole_characters
from airtune.errors import DataError
from airtune.keys import generator
from airtune.plan import Bools, Ints

NEEDED = ("prompt", "completion", "text", "messages", "image")
"""Roles that leave a row out where they are blank."""
CONTENT = ("messages", "prompt", "context", "completion", "text", "text_pair")
"""Roles by which two rows are the same."""
FILLED = ("text_pair",)
"""Roles that are read as empty where a row lacks them."""


@dataclass(frozen=True, slots=True)
class Intake:
    """The rows that a run has, before a tokenizer has seen them."""

    train: Table
    test: Table
    columns: Mapping[str, str]
    """The column of every role in use."""
    classes: Mapping[str, str]
    """Label -> name, in the order of the class ids; empty where the task has none."""
    ledger: DataLedger


def take_in(spec: DataSpec, *, seed: int, known: Sequence[str] = ()) -> Intake:
    """Read the data and settle columns, classes, and training and test rows.

    Classes are those of the whole source, whatever `limit` and `test_share` draw of it; the test
    share is drawn by class. Rows without text, image or label are left out, half characters are
    replaced, and the ledger counts both.

    Args:
        spec: what to read.
        seed: decides limits and test share.
        known: classes of the model's own head, in their order.

    Raises:
        DataError: if data are missing or malformed, or nothing is left of a part.
    """
    whole, tests = read_rows(spec, seed=seed)
    whole = with_nested(whole, spec.columns.values())
    named = resolve_columns(spec, whole)
    whole, columns = join_prompts(_mended(whole, named), named)
    found, notes = _found_test(tests, spec, named)
    test = None if found is None else join_prompts(_mended(found, named), named)[0]
    is_embedded = spec.source.startswith(EMBEDDED_PREFIX)
    source = [whole, test] if is_embedded and test is not None else [whole]
    classes = _classes(spec, join_tables(source, source=whole.source), columns, known)
    train = whole if is_embedded else _drawn(whole, spec.limit, seed, "limit")
    if test is None:
        groups = _groups(train, columns.get("label"), classes)
        random = generator(seed, "test-share")
        kept, aside = set_aside(groups, spec.test_share, random, source=train.source)
        train, test = train.take(kept), train.take(aside)
    elif not is_embedded:
        test = _drawn(test, spec.test_limit, seed, "test-limit")
    train, rows = _usable(train, columns)
    test, test_rows = _usable(test, columns)
    ledger = DataLedger(rows, test_rows, notes) + _compared(train, test, columns)
    return Intake(train, test, columns, classes, ledger)


def _found_test(
    tests: Iterable[Table], spec: DataSpec, columns: Mapping[str, str]
) -> tuple[Table | None, tuple[str, ...]]:
    """Return the test set, None where there is none, and a sentence for each without labels.

    Test sets of contests have no labels. Such a one is taken only where the recipe names it, to be
    refused.
    """
    notes: list[str] = []
    is_named = spec.test is not None or spec.test_split is not None
    for test in tests:
        if is_named or "label" not in columns or _has_labels(test, columns["label"]):
            return with_nested(test, spec.columns.values()), tuple(notes)
        notes.append(f"no row of {test.source} has a label, so it is not the test set")
    return None, tuple(notes)


def _has_labels(table: Table, label: str) -> bool:
    try:
        values = with_nested(table, [label]).column(label)
    except DataError:
        return False
    return not all(map(is_missing, values))


def _classes(
    spec: DataSpec, whole: Table, columns: Mapping[str, str], known: Sequence[str]
) -> dict[str, str]:
    if "label" not in columns:
        return {}
    return label_map(
        whole,
        columns["label"],
        name_column=columns.get("label_name"),
        labels=spec.labels,
        known=known,
    )


def _drawn(table: Table, limit: int | None, seed: int, purpose: str) -> Table:
    return table.take(at_most(len(table), limit, generator(seed, purpose)))


def _groups(table: Table, label: str | None, classes: Mapping[str, str]) -> Ints:
    """Return what the test share is drawn by: the class, one for rows without; shape (rows,)."""
    if label is None:
        return np.zeros(len(table), np.int64)
    places = {key: index for index, key in enumerate(classes)}
    return np.array([places.get(key or "", -1) for key in label_keys(table, label)], np.int64)


def _usable(table: Table, columns: Mapping[str, str]) -> tuple[Table, RowCounts]:
    """Leave out rows without text, label or answer; conversations become lists of messages."""
    blank, unlabelled = _lacking(table, columns, NEEDED), _lacking(table, columns, ("label",))
    unanswered = unsupported = np.zeros(len(table), np.bool_)
    if "messages" in columns:
        read = read_conversations(table, columns["messages"])
        table = table.replaced(columns["messages"], read.messages)
        unanswered, unsupported = read.unanswered & ~blank, read.unsupported
    kept = np.flatnonzero(~(blank | unlabelled | unanswered | unsupported))
    if not len(kept):
        roles = [role for role in (*NEEDED, "label") if role in columns]
        named = " or ".join(columns[role] for role in roles)
        why = [f"is blank in {named}"]
        if "messages" in columns:
            why.append("has no answer to train on")
        if unsupported.any():
            why.append(f"has {UNSUPPORTED}")
        raise DataError(f"every row of {table.source} {', or '.join(why)}")
    counts = RowCounts(
        read=len(table),
        blank=int(blank.sum()),
        unlabelled=int((unlabelled & ~blank).sum()),
        unanswered=int(unanswered.sum()),
        unsupported=int(unsupported.sum()),
        unreadable=_unreadable(table.take(kept), columns),
        filled=int(_lacking(table, columns, FILLED)[kept].sum()),
    )
    return table.take(kept), counts


def _mended(table: Table, columns: Mapping[str, str]) -> Table:
    """Replace half characters in the columns in use."""
    for name in _present(table, columns):
        table = table.replaced(name, [whole_characters(value) for value in table.column(name)])
    return table


def _present(table: Table, columns: Mapping[str, str]) -> list[str]:
    """Return the columns of words in use that a table has; a test set may lack what deals rows."""
    names = dict.fromkeys(name for role, name in columns.items() if role != "image")
    return [name for name in names if name in table.columns]


def _unreadable(table: Table, columns: Mapping[str, str]) -> int:
    """Count the rows that hold U+FFFD in a column in use."""
    values = zip(*(table.column(name) for name in _present(table, columns)), strict=True)
    return sum(any("\ufffd" in str(value) for value in row) for row in values)


def _lacking(table: Table, columns: Mapping[str, str], roles: Sequence[str]) -> Bools:
    """Say which rows have no value for one of these roles."""
    found = np.zeros(len(table), np.bool_)
    for role in roles:
        if role in columns:
            found |= np.array([is_missing(value) for value in table.column(columns[role])])
    return found


def _compared(train: Table, test: Table, columns: Mapping[str, str]) -> DataLedger:
    """Count what shows only between rows: labels spelt in two ways, rows in both parts."""
    seen = set(_contents(train, columns))
    shared = sum(content in seen for content in _contents(test, columns))
    if "label" not in columns:
        return DataLedger(test=RowCounts(shared=shared))
    keys, test_keys = (label_keys(part, columns["label"]) for part in (train, test))
    return spelling_ledger(keys, test_keys) + DataLedger(test=RowCounts(shared=shared))


def _contents(table: Table, columns: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Return what a model reads and writes of every row, without blanks around it."""
    columns_read = [table.column(columns[role]) for role in CONTENT if role in columns]
    return [tuple(str(value).strip() for value in row) for row in zip(*columns_read, strict=True)]
