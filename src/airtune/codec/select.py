"""Exact Top-K by magnitude, several times faster than a full selection.

A strided sample gives a threshold that is safely too low; only what lies above it is partitioned.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SAMPLE = 4096


def topk_mask(magnitude: NDArray[np.float32], count: int) -> NDArray[np.bool_]:
    """Return a mask of the entries at or above the `count`-th largest magnitude; never of a zero.

    Args:
        magnitude: shape (n,), not negative.
        count: how many to keep, 1 to n; ties at the threshold are all kept.

    >>> topk_mask(np.array([3, 1, 2], np.float32), 2).tolist()
    [True, False, True]
    """
    threshold = _threshold(magnitude, min(count, magnitude.size))
    return np.asarray(magnitude >= threshold if threshold > 0.0 else magnitude > 0.0)


def _threshold(magnitude: NDArray[np.float32], count: int) -> np.float32:
    candidates = magnitude
    if magnitude.size > 4 * _SAMPLE:
        sample = np.sort(magnitude[:: magnitude.size // _SAMPLE])
        share = count / magnitude.size
        # Four standard deviations of the sampled rank make the guess low enough almost surely.
        slack = 4.0 * np.sqrt(share * (1.0 - share) / sample.size)
        guess = sample[int(max(0.0, 1.0 - share - slack) * (sample.size - 1))]
        chosen = magnitude[magnitude >= guess]
        if chosen.size >= count:
            candidates = chosen
    return np.float32(np.partition(candidates, candidates.size - count)[candidates.size - count])
