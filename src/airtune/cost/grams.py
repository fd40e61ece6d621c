"""What second moments cost a device, once, where slices are mended by least squares.

They are those of what the output projections read, one matrix a block for the heads and one for the
FFN channels, as wide as those are in the dense model. A device measures them in the forward passes
that measure the scores, and sends their main directions with variances and means; those of the pooled
matrices come back on the broadcast. Only a device that holds the dense base and the matrices can measure.
"""

from __future__ import annotations

from airtune.plan import ModelShape, Workload

GRAM_RANK = 512
"""Directions a matrix, at most, up and down: more gain little for their bytes (docs/models.md)."""
_LEVEL, _SINGLE = 0.5, 4
"""Bytes of a direction's number, and of any other."""
_PASSES = 3
"""Products with the matrix that finding its directions takes, and one more for their lengths."""


def gram_bytes(shape: ModelShape) -> float:
    """Return the bytes of second moments, one way: directions of a step each, variances and means.

    >>> from airtune.cost.shapes import llama_like
    >>> gram_bytes(llama_like("llama", blocks=1, width=2, heads=1, kv_groups=1, head_dim=2, ffn=3,
    ...                       vocab=10, tied=True))
    66.5
    """
    sizes = (min(GRAM_RANK, n) * (_LEVEL * n + _SINGLE) + 2 * _SINGLE * n for n in _widths(shape))
    return float(shape.blocks * sum(sizes))


def gram_flops(shape: ModelShape, workload: Workload) -> float:
    """Return the FLOPs of `x x'` over one batch, beside its forward pass."""
    tokens = workload.batch * workload.tokens
    return float(sum(2 * tokens * shape.blocks * n * n for n in _widths(shape)))


def direction_flops(shape: ModelShape) -> float:
    """Return the FLOPs of finding the directions of all matrices, once."""
    products = (2 * n * n * min(GRAM_RANK, n) for n in _widths(shape))
    return float(shape.blocks * (_PASSES + 1) * sum(products))


def gram_peak_bytes(shape: ModelShape, workload: Workload) -> float:
    """Return the memory of the dense base and the whole matrices."""
    matrices = sum(_SINGLE * shape.blocks * n * n for n in _widths(shape))
    return float(shape.parameters * workload.base_bits / 8 + matrices)


def _widths(shape: ModelShape) -> tuple[int, int]:
    return shape.heads * shape.head_dim, shape.ffn
