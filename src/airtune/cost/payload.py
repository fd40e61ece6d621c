"""Bytes of weights and adapters: what is stored, what is sent and what is broadcast.

Only the adapters of kept structures travel, and the trained head with them. Removing an output
channel of W deletes a row of B, removing an input channel a column of A; the side of a layer that
faces the residual stream is never pruned, so payloads fall more slowly than the pruned fraction.
Counts are exact: they equal the tensors of peft's adapters. A cut device sends the adapters of
its own blocks. A coded update is one payload for its A factors, one for its B factors and one for
its head (`airtune.work.uploads`), each priced by `airtune.cost.coded`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from airtune.cost.coded import payload_bytes
from airtune.cost.graph import KeptSizes, kept, sizes, targets
from airtune.plan import Assignments, CodecSpec, Floats, Ints, ModelShape, Workload
from airtune.units import BITS_PER_BYTE

SCALE_BITS = 32 / 64
"""A 4-bit weight's share of its block's scale: one fp32 for 64 weights (NF4, not nested)."""


SCORE_BYTES = 4
"""Bytes of a structure's score on the wire."""


def lora_parameters(shape: ModelShape, workload: Workload, assignments: Assignments) -> Ints:
    """Return the numbers in a device's adapters: `rank * (in + out)` over layers and blocks.

    Returns:
        Counts, shape (n,), without the trained head.

    Raises:
        ModelError: if a LoRA target is no layer of this family.
    """
    left = kept(shape, assignments)
    count = left.blocks * left.rank * _block_sides(shape, workload, left)
    return np.rint(count).astype(np.int64)


def trained_parameters(shape: ModelShape, workload: Workload, assignments: Assignments) -> Ints:
    """Return all numbers a device trains: its adapters and, where trained, the task head, (n,)."""
    head = np.where(assignments.cut == 0, _head(shape, workload), 0)
    return lora_parameters(shape, workload, assignments) + head.astype(np.int64)


def upload_bytes(shape: ModelShape, workload: Workload, assignments: Assignments) -> Floats:
    """Return the bytes of a device's update, shape (n,).

    Exact tensor bytes without framing, or the expected payloads where updates are coded.
    """
    size = score_bytes(shape, workload, assignments)
    for spec, rows in assignments.upload_groups(workload.upload):
        scale = workload.upload_scale(spec)
        size = size + rows * adapter_bytes(shape, workload, assignments, spec, scale=scale)
    return np.asarray(size, np.float64)


def adapter_bytes(
    shape: ModelShape,
    workload: Workload,
    assignments: Assignments,
    spec: CodecSpec,
    *,
    scale: float,
) -> Floats:
    """Return the bytes of devices' adapters, and of trained heads, in one codec, shape (n,).

    Args:
        shape: the unpruned model.
        workload: names the layers with adapters.
        assignments: n devices.
        spec: the codec; the identity takes the exact tensor bytes.
        scale: real bytes of coded adapters over expected ones.
    """
    if spec.kind == "identity":
        numbers = trained_parameters(shape, workload, assignments).astype(np.float64)
        return numbers * workload.adapter_bytes
    return scale * _coded(shape, workload, kept(shape, assignments), spec)


def score_bytes(shape: ModelShape, workload: Workload, assignments: Assignments) -> Floats:
    """Return the bytes of the structures' scores that go with an update, shape (n,).

    Single-precision numbers of what is kept; never coded.
    """
    left = kept(shape, assignments)
    if workload.scores == "none":
        return np.zeros(len(assignments))
    return np.asarray(SCORE_BYTES * left.blocks * (left.groups + left.channels))


def download_bytes(shape: ModelShape, workload: Workload, rank: int) -> float:
    """Return the bytes of the broadcast global adapters, on the full grid at `rank`, and head."""
    sides = sum(
        int(columns) + int(rows)
        for columns, rows in (
            shape.linear_sizes(linear, shape.kv_groups, shape.ffn)
            for linear in targets(shape, workload)
        )
    )
    return float(shape.blocks * rank * sides + _head(shape, workload)) * workload.adapter_bytes


def broadcast_bytes(shape: ModelShape, workload: Workload, assignments: Assignments) -> float:
    """Return the bytes that every device of a plan receives before it trains the whole model.

    As they are, the adapters are sent on the full grid at the largest rank; coded, the largest
    slice of the plan is, and these are the expected payloads. 0 for an empty plan.
    """
    if not len(assignments):
        return 0.0
    if workload.download.kind == "identity":
        return download_bytes(shape, workload, int(assignments.rank.max()))
    coded = _coded(shape, workload, kept(shape, widest(assignments)), workload.download)
    return workload.coded_scale.down * float(coded[0])


def widest(assignments: Assignments) -> Assignments:
    """Return one row that keeps as much as any of a plan, at the largest rank, without a cut."""
    return replace(
        assignments.take(np.zeros(1, np.int64)),
        prune_heads=assignments.prune_heads.min(keepdims=True),
        prune_ffn=assignments.prune_ffn.min(keepdims=True),
        rank=assignments.rank.max(keepdims=True),
        cut=np.zeros(1, np.int64),
    )


def base_bytes(shape: ModelShape, workload: Workload) -> float:
    """Return the bytes of the unpruned frozen base, as stored and as first transferred."""
    linears = shape.blocks * sum(
        int(columns) * int(rows)
        for columns, rows in (
            shape.linear_sizes(linear, shape.kv_groups, shape.ffn) for linear in shape.linears
        )
    )
    quantised, plain = _weight_bytes(workload)
    return linears * quantised + (shape.parameters - linears) * plain


def held_bytes(shape: ModelShape, workload: Workload, left: KeptSizes) -> Floats:
    """Return the bytes of the sliced base in a device's memory, shape (n,).

    A cut device holds the embedding and its blocks; the server holds the rest and the head.
    """
    pairs = [sizes(shape, linear, left) for linear in shape.linears]
    linears = sum((columns * rows for columns, rows in pairs), start=np.zeros(len(left.rank)))
    block = shape.block_parameters(left.groups, left.channels) - linears
    outside = shape.embedding_parameters + left.whole * shape.head_parameters
    quantised, plain = _weight_bytes(workload)
    return np.asarray(
        left.blocks * linears * quantised + (left.blocks * block + outside) * plain, np.float64
    )


def _weight_bytes(workload: Workload) -> tuple[float, float]:
    """Bytes a weight of (a block's linear layers, everything else)."""
    if workload.base_bits < 16:
        scale = SCALE_BITS if workload.base_bits == 4 else 0.0
        return (workload.base_bits + scale) / BITS_PER_BYTE, float(workload.dtype_bytes)
    return workload.base_bits / BITS_PER_BYTE, workload.base_bits / BITS_PER_BYTE


def _coded(shape: ModelShape, workload: Workload, left: KeptSizes, spec: CodecSpec) -> Floats:
    """Return the expected payloads of coded adapters and heads, (n,)."""
    pairs = [sizes(shape, linear, left) for linear in targets(shape, workload)]
    each = left.blocks * left.rank
    total = sum(
        (payload_bytes(each * sum(side), spec) for side in zip(*pairs, strict=True)),
        start=np.zeros(len(each)),
    )
    head = _head(shape, workload)
    return total + (left.whole * payload_bytes(head, spec) if head else 0.0)


def _block_sides(shape: ModelShape, workload: Workload, left: KeptSizes) -> Floats:
    pairs = [sizes(shape, linear, left) for linear in targets(shape, workload)]
    return sum((columns + rows for columns, rows in pairs), start=np.zeros(len(left.rank)))


def _head(shape: ModelShape, workload: Workload) -> int:
    return shape.trained_head_parameters if workload.trains_head else 0
