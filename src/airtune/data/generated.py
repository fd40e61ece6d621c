"""The embedded data: made on the fly from a seed, no files, training and test rows apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from airtune.data.arithmetic import word_problem
from airtune.data.embedded import ARITHMETIC, SHAPES, TOPICS
from airtune.data.shapes import FIGURES, draw
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
    """Return `train` and `test` rows of an embedded source, no two with the same text; images may be alike.

    Raises:
        DataError: if so many different rows cannot be made.

    >>> train, test = generate("embedded:topics", train=20, test=5, seed=0)
    >>> len(train), len(test), set(train.texts("text")) & set(test.texts("text"))
    (20, 5, set())
    """
    if source == SHAPES:
        return _shapes(train, seed, "train"), _shapes(test, seed, "test")
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


def _shapes(count: int, seed: int, part: str) -> Table:
    names = tuple(FIGURES)
    pixels, classes = draw(count, generator(seed, "shapes", part))
    rows = [
        {"image": image.transpose(1, 2, 0), "label": names[index]}
        for image, index in zip(pixels, classes.tolist(), strict=True)
    ]
    return table_from_rows(rows, source=SHAPES if part == "train" else f"{SHAPES} (test)")
