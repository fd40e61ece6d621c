"""Which rows are kept, and which are set aside for the test or for validation, drawn by seed."""

from __future__ import annotations

import numpy as np

from airtune.errors import DataError
from airtune.plan import Ints


def at_most(rows: int, limit: int | None, random: np.random.Generator) -> Ints:
    """Return which of `rows` rows are kept: all, or `limit` of them drawn at random, sorted."""
    if limit is None or rows <= limit:
        return np.arange(rows)
    return np.sort(random.permutation(rows)[:limit])


def hold_out(rows: Ints, share: float, random: np.random.Generator) -> tuple[Ints, Ints]:
    """Return a device's rows for training, and its share for validation, both sorted.

    The share is at least one row and never all; a share of 0 is none.
    """
    count = min(max(round(share * len(rows)), 1), len(rows) - 1) if share else 0
    order = random.permutation(rows)
    return np.sort(order[count:]), np.sort(order[:count])


def set_aside(
    classes: Ints, share: float, random: np.random.Generator, *, source: str
) -> tuple[Ints, Ints]:
    """Return the rows that are kept and those set aside as test set, both sorted.

    They are drawn by class: of each class its share, rounded so that the whole is right (largest
    remainders first), and never all of a class, so that what is tested was trained on.

    Args:
        classes: class of every row, shape (rows,); one class where rows have none.
        share: to set aside, in [0, 1).
        random: source of the draw.
        source: named in errors.

    Raises:
        DataError: if the share rounds to no row or to all of them, or every class has one row.
    """
    rows = len(classes)
    count = round(share * rows)
    if not 0 < count < rows:
        raise DataError(
            f"{source} has no test set and {share:g} of its {rows} rows is {count}; "
            "name one as `data.test` or change `data.test_share`"
        )
    order = random.permutation(rows)
    _, group, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    taken = _quotas(sizes, share, count, random)
    if not taken.sum():
        raise DataError(
            f"{source} has no test set and one row of every class; name one as `data.test`"
        )
    by_group = order[np.argsort(group[order], kind="stable")]
    starts = np.cumsum(sizes) - sizes
    aside = np.concatenate(
        [by_group[start : start + some] for start, some in zip(starts, taken.tolist(), strict=True)]
    )
    return np.setdiff1d(np.arange(rows), aside), np.sort(aside)


def _quotas(sizes: Ints, share: float, count: int, random: np.random.Generator) -> Ints:
    """Return how many rows of each class are set aside, shape (classes,)."""
    exact = share * sizes
    taken: Ints = np.floor(exact).astype(np.int64)
    mixed = random.permutation(len(sizes))
    largest_first = mixed[np.argsort(taken[mixed] - exact[mixed], kind="stable")]
    while taken.sum() < min(count, int((sizes - 1).sum())):
        for group in largest_first.tolist():
            if taken.sum() < count and taken[group] < sizes[group] - 1:
                taken[group] += 1
    return taken
