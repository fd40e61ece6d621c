"""A hash of examples, as the model reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from airtune.model.images import Examples, Images


def fingerprint_of(sets: Iterable[Examples]) -> str:
    """Return a SHA-256 of sets of examples, such as each device's and the test set.

    It changes with a token, a pixel, a label, their order, or the set in which an example is.
    """
    found = hashlib.sha256()
    for examples in sets:
        for array in _arrays(examples):
            found.update(f"{array.dtype.str}{array.shape}".encode())
            found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _arrays(examples: Examples) -> Iterator[np.ndarray]:
    if isinstance(examples, Images):
        yield examples.pixels
        yield np.array([examples.mean, examples.deviation])
        yield examples.targets
        return
    for rows in (examples.tokens, examples.targets, examples.segments):
        parts = [rows] if isinstance(rows, np.ndarray) else list(rows)
        yield np.array([len(part) for part in parts])
        yield np.concatenate(parts) if parts else np.zeros(0)
