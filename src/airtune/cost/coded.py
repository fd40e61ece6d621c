"""How many bytes a coded tensor will take, without coding it: where nothing was measured.

`topk` is priced from the i.i.d. entropy bound, `N H2(k) + K (1 + bits - 1)` bits at most, plus the
few percent that Huffman coding of whole bytes adds; real activations and gradients come out
below it, because their positions are not independent. `deadzone` is priced from the entropy of
a normal variable on its grid, with Huffman's floor of one bit an entry on a fine one.

Rows that stand out and are sent apart are not expected here; the most that they take is in
`cost.most`. Activations, gradients and updates of a model are far from normal, so a calibration
measures what theirs take (`airtune.calibrate`).

Expected error against real payloads of independent normal data: within 15 % from 2,000 entries
(held by a test).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from airtune.plan import CodecSpec, Floats

HEADER_BYTES = 48
FEWEST_CHANNELS = 16
"""Rows of fewer entries never stand out."""
FEWEST_CENTRED = 32
"""Rows of which `topk` sends the channels' means."""
ROW_BYTES = 3
"""Of a row's scale and largest entry (`topk`), before they are coded."""
_CODED_ROW_BYTES = 1.5
"""Measured of the same."""
MOST_APART = 1 / 8
"""Most rows of a tensor that `topk` and `deadzone` send apart, in half precision."""
_APART = 0.25
"""Share of integers other than 0 up to which `deadzone` has no floor of a bit an entry."""
_HALF_BYTES = 1.69
"""Measured of a normal number in half precision, whose exponents repeat."""
_CODING_LOSS = 1.045
"""Measured excess of the coders over the entropy bound on independent data."""


def payload_bytes(
    elements: ArrayLike, spec: CodecSpec, *, channels: int = 1, known_mask: bool = False
) -> Floats:
    """Return the expected payloads of many tensors at once.

    Args:
        elements: entries of each tensor, any shape.
        spec: one codec for all.
        channels: length of the last axis.
        known_mask: for `topk`, the positions are known to the other end.

    >>> payload_bytes([0, 1000], CodecSpec("fp16")).tolist()
    [48.0, 1738.0]
    """
    count = np.asarray(elements, np.float64)
    if spec.kind == "identity":
        return np.asarray(HEADER_BYTES + 4.0 * count)
    if spec.kind == "fp16":
        return np.asarray(HEADER_BYTES + _HALF_BYTES * count)
    row = channels if spec.kind == "topk" and channels >= FEWEST_CHANNELS else 0
    coded = _CODING_LOSS * _bound_bits(spec.kind, spec.keep, spec.bits, spec.step, row)
    size = HEADER_BYTES + coded / 8.0 * count
    if spec.kind == "deadzone":
        return np.asarray(size + 2.0 * channels)
    size = size + np.minimum(64.0, count * spec.keep)
    if known_mask:
        size = size - binary_entropy(spec.keep) / 8.0 * count
    return np.asarray(size + (_row_bytes(count / row, row, known_mask) if row else 0.0))


def _row_bytes(rows: Floats, channels: int, known_mask: bool) -> Floats:
    """Return what `topk` sends of rows' scales and channels' means."""
    has_means = (rows >= FEWEST_CENTRED) & (not known_mask)
    return np.asarray(_CODED_ROW_BYTES * rows + np.where(has_means, 2.0 * channels, 0.0))


def entropy_bound_bytes(elements: int, spec: CodecSpec) -> float:
    """Return the bound in bytes for independent, normally distributed entries (`topk`, `deadzone`)."""
    return elements * _bound_bits(spec.kind, spec.keep, spec.bits, spec.step) / 8.0


def bound_bytes(elements: int, spec: CodecSpec, *, known_mask: bool = False) -> float:
    """Return the least bytes for independent, normally distributed entries, any codec.

    Args:
        elements: entries of the tensor.
        spec: the codec; for the lossless and half-precision controls it is their own size.
        known_mask: for `topk`, the positions are known to the other end.

    >>> bound_bytes(1000, CodecSpec("fp16"))
    2000.0
    """
    if spec.kind in ("identity", "fp16"):
        return (4.0 if spec.kind == "identity" else 2.0) * elements
    mask_bits = elements * binary_entropy(spec.keep) if known_mask and spec.kind == "topk" else 0.0
    return entropy_bound_bytes(elements, spec) - mask_bits / 8.0


def binary_entropy(probability: float) -> float:
    """Return the entropy in bits of a coin that falls on one side with `probability`.

    >>> binary_entropy(0.5)
    1.0
    """
    return _entropy(np.array([probability, 1.0 - probability]))


@lru_cache(maxsize=256)
def _bound_bits(kind: str, keep: float, bits: int, step: float, row: int = 0) -> float:
    """Return the bound in bits an entry; rows of so many entries have a largest level of their own."""
    if kind == "topk":
        return binary_entropy(keep) + keep * (1.0 + _level_entropy(keep, bits, row))
    from scipy.special import ndtr

    edges = (np.arange(-128, 128) + 0.5) * step
    share = np.diff(ndtr(edges))
    entropy = _entropy(share)
    # where few integers are not 0 they are coded apart from their positions
    return entropy if 1.0 - float(share.max()) <= _APART else max(1.0, entropy)


def _level_entropy(keep: float, bits: int, row: int) -> float:
    """Entropy of a level: the tail of |normal| beyond its quantile, on an even grid of 2^(bits-1).

    The grid ends at the tensor's largest entry, or at the median of the largest of a row.
    """
    levels = 2 ** (bits - 1)
    quantile = np.linspace(1.0 - keep, 1.0, 4001)[:-1] + keep / 8002.0
    magnitude = _half_normal_quantile(quantile)
    top = magnitude[-1]
    if row > 0:
        top = np.clip(_half_normal_quantile(np.array(0.5 ** (1.0 / row))), magnitude[1], top)
    position = np.minimum((magnitude - magnitude[0]) / (top - magnitude[0]), 1.0) * (levels - 1)
    below = np.minimum(position.astype(np.int64), levels - 2)
    above = position - below
    share = np.bincount(below, 1.0 - above, levels) + np.bincount(below + 1, above, levels)
    return _entropy(share / position.size)


def _half_normal_quantile(probability: Floats) -> Floats:
    from scipy.special import ndtri

    return np.asarray(ndtri(0.5 + 0.5 * probability))


def _entropy(probability: Floats) -> float:
    positive = probability[probability > 0.0]
    return float(-(positive * np.log2(positive)).sum())
