"""How many bytes a payload will take, without making it.

`topk` is priced from the i.i.d. entropy bound, `N H2(k) + K (1 + bits - 1)` bits at most, plus the
few percent that Huffman coding of whole bytes adds; real activations and gradients come out
below it, because their positions are not independent. `deadzone` is priced from the entropy of
a normal variable on its grid, with Huffman's floor of one bit an entry.

Expected error against real payloads of independent normal data: within 15 % from 2,000 entries
(held by a test).
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr, ndtri

from airtune.plan import CodecSpec, Floats

HEADER_BYTES = 48
_CODING_LOSS = 1.045
"""Measured excess of the coders over the entropy bound on independent data."""


def estimate_bytes(elements: int, spec: CodecSpec, *, channels: int = 1) -> float:
    """Return the expected payload of a tensor of `elements` entries, the last axis `channels` long."""
    if spec.kind == "identity":
        return HEADER_BYTES + 4.0 * elements
    if spec.kind == "fp16":
        return HEADER_BYTES + 2.0 * elements
    if spec.kind == "topk":
        return (
            HEADER_BYTES
            + min(64.0, elements * spec.keep)
            + _CODING_LOSS * entropy_bound_bytes(elements, spec)
        )
    return HEADER_BYTES + 2.0 * channels + _CODING_LOSS * entropy_bound_bytes(elements, spec)


def entropy_bound_bytes(elements: int, spec: CodecSpec) -> float:
    """Return the bound in bytes for independent, normally distributed entries (`topk`, `deadzone`)."""
    if spec.kind == "topk":
        mask_bits = elements * binary_entropy(spec.keep)
        return (mask_bits + spec.keep * elements * (1.0 + _level_entropy(spec))) / 8.0
    edges = (np.arange(-128, 128) + 0.5) * spec.step
    probability = np.diff(ndtr(edges))
    return elements * max(1.0, _entropy(probability)) / 8.0


def binary_entropy(probability: float) -> float:
    """Return the entropy in bits of a coin that falls on one side with `probability`.

    >>> binary_entropy(0.5)
    1.0
    """
    return _entropy(np.array([probability, 1.0 - probability]))


def _level_entropy(spec: CodecSpec) -> float:
    """Entropy of a level: the tail of |normal| beyond its quantile, on an even grid of 2^(bits-1)."""
    levels = 2 ** (spec.bits - 1)
    quantile = np.linspace(1.0 - spec.keep, 1.0, 4001)[:-1] + spec.keep / 8002.0
    magnitude = _half_normal_quantile(quantile)
    position = (magnitude - magnitude[0]) / (magnitude[-1] - magnitude[0]) * (levels - 1)
    below = np.minimum(position.astype(np.int64), levels - 2)
    above = position - below
    share = np.bincount(below, 1.0 - above, levels) + np.bincount(below + 1, above, levels)
    return _entropy(share / position.size)


def _half_normal_quantile(
    probability: Floats,
) -> Floats:
    return np.asarray(ndtri(0.5 + 0.5 * probability))


def _entropy(probability: Floats) -> float:
    positive = probability[probability > 0.0]
    return float(-(positive * np.log2(positive)).sum())
