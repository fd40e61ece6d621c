"""The embedded data: made on the fly from a seed, no files, training and test rows apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from airtune.data.arithmetic import word_problem
from airtune.data.embedded import ARITHMETIC, TOPICS
from airtune.data.table import Table, table_from_rows
from airtune.data.topics import topic_text
from airtune.errors import DataError
from airtune.keys import generator

TRAIN_ROWS = 2000
TEST_ROWS = 400

_ATTEMPTS = 50
"""Draws a row before the generator counts as exhausted."""

_MAKERS: Mapping[str, tuple[Callable[[np.random.Generator], dict[str, str]], str]] = {
    ARITHMETIC: (word_problem, "question"),
    TOPICS: (topic_text, "text"),
}


def generate(source: str, *, train: int, test: int, seed: int) -> tuple[Table, Table]:
    """Return `train` and `test` rows of an embedded source, no two with the same text.

    Raises:
        DataError: if so many different rows cannot be made.

    >>> train, test = generate("embedded:topics", train=20, test=5, seed=0)
    >>> len(train), len(test), set(train.texts("text")) & set(test.texts("text"))
    (20, 5, set())
    """
    make, key = _MAKERS[source]
    random = generator(seed, "generated", source)
    rows: dict[str, dict[str, str]] = {}
    wanted = train + test
    for _ in range(_ATTEMPTS * wanted):
        row = make(random)
        rows.setdefault(row[key], row)
        if len(rows) == wanted:
            break
    if len(rows) < wanted:
        raise DataError(
            f"{source} can make {len(rows)} different rows, {wanted} were asked for; lower "
            "`data.limit`"
        )
    made = list(rows.values())
    return (
        table_from_rows(made[:train], source=source),
        table_from_rows(made[train:], source=f"{source} (test)"),
    )
