"""A hash of the data of a run, as the model reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from airtune.data.federated import FederatedData
from airtune.model.images import Examples, Images


def data_fingerprint(data: FederatedData) -> str:
    """Return a SHA-256 of every device's examples, held-out ones included, and of the test set.

    It changes with a token, a pixel, a label, their order, or who holds which example.
    """
    found = hashlib.sha256()
    sets = [part for device in data.devices for part in (device.train, device.validation)]
    for examples in (*sets, data.test):
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
