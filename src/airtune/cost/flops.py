"""FLOPs of LoRA training, exact for matrix products.

A multiply-add is 2 FLOPs. Counted: linear layers, adapters, attention scores and weighted values
over the whole square of positions (what a masked kernel computes), head. Forward always; backward
only what autograd does for a frozen base (`airtune.cost.graph`): a frozen weight needs the gradient
of its input and never its own, the first block not even that before its first adapter. Gradient
checkpointing repeats the forward pass of every block; a chunked loss repeats nothing. The head
computes scored positions only.

Not counted: norms, activations, softmax, rotary embedding, loss and optimiser, as in torch's FLOP
counter, with which these figures agree to the last one (eager attention). Kernels
for causal attention that skip half of the square do less. Checkpointing stops repeating a block at
its last saved tensor: up to one adapter product a block too many is counted, under 1 % of a step.
"""

from __future__ import annotations

import numpy as np

from airtune.cost.graph import (
    ENCODERS,
    Flow,
    KeptSizes,
    flows,
    kept,
    later_flow,
    reads,
    scored_positions,
    sizes,
    targets,
    taught,
    teacher_of,
)
from airtune.plan import Assignments, Floats, ModelShape, Workload


def train_flops(shape: ModelShape, workload: Workload, assignments: Assignments) -> Floats:
    """Return the FLOPs of a device's local steps in one round.

    Args:
        shape: The unpruned model.
        workload: Batch, length, adapters and memory-saving switches.
        assignments: Pruning, rank, cut and number of steps, n devices.

    Returns:
        FLOPs, shape (n,).

    Raises:
        ModelError: if a LoRA target is no layer of this family.
    """
    left = kept(shape, assignments)
    first, later = flows(shape, workload)
    blocks = _block_macs(shape, workload, left, first)
    blocks = blocks + (left.blocks - 1.0) * _block_macs(shape, workload, left, later)
    tokens = float(workload.batch * workload.tokens)
    step = tokens * blocks + left.whole * _head_macs(shape, workload, later)
    if workload.scores == "gradient":
        step = step + left.blocks * _score_macs(shape, workload, left)
    step = step + taught(shape, workload, left) * _teacher_macs(shape, workload, left)
    return np.asarray(2.0 * step * assignments.local_steps, np.float64)


def forward_flops(shape: ModelShape, workload: Workload, assignments: Assignments) -> Floats:
    """Return the FLOPs of one forward pass over one batch, adapters included, shape (n,)."""
    left = kept(shape, assignments)
    tokens = float(workload.batch * workload.tokens)
    head = left.whole * scored_positions(shape, workload) * shape.head_macs
    block = _forward_macs(shape, workload, left)
    return np.asarray(2.0 * (tokens * left.blocks * block + head), np.float64)


def server_flops(shape: ModelShape, workload: Workload, assignments: Assignments) -> Floats:
    """Return the FLOPs of the server's pass over one batch of each cut device, (n,).

    Forward and backward through the blocks after the cut, unpruned, and the head; the activation
    that arrives always needs a gradient, so the first of these blocks computes as any later one.
    """
    left = kept(shape, assignments)
    later = later_flow(shape, workload)
    tokens = float(workload.batch * workload.tokens)
    blocks = (shape.blocks - left.blocks) * _block_macs(shape, workload, left, later)
    return np.asarray(2.0 * (tokens * blocks + _head_macs(shape, workload, later)), np.float64)


def _teacher_macs(shape: ModelShape, workload: Workload, left: KeptSizes) -> Floats:
    """Multiply-adds of the dense base's forward pass over one batch, (n,)."""
    tokens = float(workload.batch * workload.tokens)
    blocks = left.blocks * _forward_macs(shape, workload, teacher_of(shape, left))
    return tokens * blocks + scored_positions(shape, workload) * shape.head_macs


def head_flops(shape: ModelShape, workload: Workload) -> float:
    """Return the FLOPs of the head for one batch, forward and backward, below it adapters."""
    return 2.0 * _head_macs(shape, workload, later_flow(shape, workload))


def _forward_macs(shape: ModelShape, workload: Workload, left: KeptSizes) -> Floats:
    """Multiply-adds of one block's forward pass for one token, (n,)."""
    macs = 2.0 * left.query * workload.tokens
    for linear in shape.linears:
        columns, rows = sizes(shape, linear, left)
        macs = macs + columns * rows
    for linear in targets(shape, workload):
        columns, rows = sizes(shape, linear, left)
        macs = macs + left.rank * (columns + rows)
    return macs


def _backward_macs(shape: ModelShape, workload: Workload, left: KeptSizes, flow: Flow) -> Floats:
    """Multiply-adds of one block's backward pass for one token, (n,)."""
    # gradients of queries, keys, attention weights and values, one square each
    squares = flow.query + flow.key + flow.scores + flow.value
    macs = squares * left.query * workload.tokens
    for linear in shape.linears:
        columns, rows = sizes(shape, linear, left)
        macs = macs + flow.at(reads(linear)) * columns * rows
    for linear in targets(shape, workload):
        columns, rows = sizes(shape, linear, left)
        # B's gradient and its input's; A's gradient and, where one is needed, its input's
        macs = macs + left.rank * (2.0 * rows + (1.0 + flow.at(reads(linear))) * columns)
    return np.asarray(macs, np.float64)


def _score_macs(shape: ModelShape, workload: Workload, left: KeptSizes) -> Floats:
    """Multiply-adds of one block's scores from the adapters' gradients: 3 products of rank r."""
    macs = np.zeros(len(left.rank))
    for linear in targets(shape, workload):
        columns, rows = sizes(shape, linear, left)
        macs = macs + 3.0 * left.rank * columns * rows
    return macs


def _block_macs(shape: ModelShape, workload: Workload, left: KeptSizes, flow: Flow) -> Floats:
    passes = 2.0 if workload.checkpointing and flow.output else 1.0
    forward = passes * _forward_macs(shape, workload, left)
    return forward + _backward_macs(shape, workload, left, flow)


def _head_macs(shape: ModelShape, workload: Workload, flow: Flow) -> float:
    """Multiply-adds of the head for one batch: forward, input gradient and trained weights."""
    macs = (1.0 + flow.output) * shape.head_macs
    if workload.trains_head:
        # an encoder's classifier has biases, and a trained dense layer too: no products
        biases = shape.labels if shape.family in ENCODERS else 0
        macs += min(shape.trained_head_parameters - biases, shape.head_macs)
    return scored_positions(shape, workload) * macs
