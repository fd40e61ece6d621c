"""What second moments cost a device, once, where slices are mended by least squares.

Of what the output projections read, one matrix a block for the heads and one for the FFN channels, as wide as those are in the dense
model. It is measured in the forward passes that measure the scores, sent as a triangle in single
precision with the means, and the pooled matrices come back on the broadcast. Only a device that
holds the dense base and the matrices can measure them.
"""

from __future__ import annotations

from airtune.plan import ModelShape, Workload

_SINGLE = 4
"""Bytes of a number."""


def gram_bytes(shape: ModelShape) -> float:
    """Return the bytes of a device's report: upper triangles and means.

    >>> from airtune.cost.shapes import llama_like
    >>> gram_bytes(llama_like("llama", blocks=1, width=2, heads=1, kv_groups=1, head_dim=2, ffn=3,
    ...                       vocab=10, tied=True))
    56.0
    """
    return float(sum(_SINGLE * shape.blocks * (n * (n + 1) // 2 + n) for n in _widths(shape)))


def gram_flops(shape: ModelShape, workload: Workload) -> float:
    """Return the FLOPs of `x x'` over one batch, beside its forward pass."""
    tokens = workload.batch * workload.tokens
    return float(sum(2 * tokens * shape.blocks * n * n for n in _widths(shape)))


def gram_peak_bytes(shape: ModelShape, workload: Workload) -> float:
    """Return the memory of the dense base and the whole matrices."""
    matrices = sum(_SINGLE * shape.blocks * n * n for n in _widths(shape))
    return float(shape.parameters * workload.base_bits / 8 + matrices)


def _widths(shape: ModelShape) -> tuple[int, int]:
    return shape.heads * shape.head_dim, shape.ffn
