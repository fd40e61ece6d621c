"""What devices have left after cumulative pruning, as a few arrays however many they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from airtune.model.importance import Importance
from airtune.model.kept import Kept
from airtune.model.state import DeviceState
from airtune.plan import Bools, Ints

Arrays = Mapping[str, NDArray[np.generic]]


def pack_devices(devices: Mapping[int, DeviceState]) -> dict[str, NDArray[np.generic]]:
    """Return arrays of which `unpack_devices` makes the same again; {} for no device."""
    if not devices:
        return {}
    states = list(devices.values())
    arrays: dict[str, NDArray[np.generic]] = {
        "number": np.array(list(devices), np.int64),
        "measured": np.array([state.importance is not None for state in states]),
        "has_groups": _masks([state.kept.groups for state in states]),
        "has_channels": _masks([state.kept.channels for state in states]),
    }
    scores = [state.importance for state in states if state.importance is not None]
    if scores:
        arrays["groups"] = np.stack([item.groups for item in scores])
        arrays["channels"] = np.stack([item.channels for item in scores])
    return arrays


def unpack_devices(arrays: Arrays) -> dict[int, DeviceState]:
    """Return what `pack_devices` was given.

    Raises:
        KeyError: if an array is missing.
    """
    if not arrays:
        return {}
    states = {}
    measured = np.flatnonzero(arrays["measured"]).tolist()
    for index, number in enumerate(arrays["number"].tolist()):
        kept = Kept(_rows(arrays["has_groups"][index]), _rows(arrays["has_channels"][index]))
        own = None
        if index in measured:
            row = measured.index(index)
            own = Importance(
                np.asarray(arrays["groups"][row], np.float64),
                np.asarray(arrays["channels"][row], np.float64),
            )
        states[int(number)] = DeviceState(kept, own)
    return states


def _masks(devices: Sequence[tuple[Ints, ...]]) -> Bools:
    """Return which indices are there, (devices, blocks, largest index + 1)."""
    size = 1 + max(int(row[-1]) for rows in devices for row in rows)
    masks = np.zeros((len(devices), len(devices[0]), size), np.bool_)
    for index, rows in enumerate(devices):
        for block, row in enumerate(rows):
            masks[index, block, row] = True
    return masks


def _rows(mask: NDArray[np.generic]) -> tuple[Ints, ...]:
    return tuple(np.flatnonzero(row).astype(np.int64) for row in mask)
