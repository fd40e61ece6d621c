"""The hash of a run's data changes with whatever a model could learn otherwise by."""

from dataclasses import replace

import numpy as np
import pytest

from airtune.data.federated import DeviceData, FederatedData
from airtune.model.batch import Sequences
from airtune.model.images import Images


def texts(*rows):
    tokens = tuple(np.array(row) for row in rows)
    return Sequences(tokens, tokens)


ONE, OTHER = texts([1, 2], [3]), texts([4])


def data(*held, test=OTHER):
    devices = tuple(DeviceData(part, texts()) for part in held)
    return FederatedData(devices, test, labels=(), columns={}, counts={})


@pytest.mark.parametrize(
    "changed",
    [
        data(texts([1, 2], [5]), OTHER),
        data(texts([1], [2, 3]), OTHER),
        data(texts([3], [1, 2]), OTHER),
        data(OTHER, ONE),
        data(ONE, OTHER, test=ONE),
        data(replace(ONE, targets=(np.array([1, -100]), np.array([3]))), OTHER),
    ],
)
def test_texts(changed):
    assert data(ONE, OTHER).fingerprint == data(texts([1, 2], [3]), OTHER).fingerprint
    assert changed.fingerprint != data(ONE, OTHER).fingerprint


def test_images():
    held = Images(np.zeros((2, 1, 4, 4), np.uint8), np.array([0, 1]))
    pixels = held.pixels.copy()
    pixels[1, 0, 2, 3] = 1
    others = [
        replace(held, pixels=pixels),
        replace(held, targets=np.array([1, 0])),
        replace(held, mean=(0.4,)),
    ]
    hashes = {data(part).fingerprint for part in (held, *others)}
    assert len(hashes) == 4
