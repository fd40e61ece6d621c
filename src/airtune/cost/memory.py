"""Peak training memory of an assignment, by what autograd really keeps of the LoRA graph.

    peak = sliced base + adapters + their gradients + optimiser states + activations + logits

between the passes, from the second step on. Assumptions: the base is frozen and runs without
dropout; attention is torch's fused kernel (queries, keys and values repeated to all heads, output,
one logarithm a position and head, and a mask of `tokens ** 2` numbers a block, as padded batches
need); batches are padded to `tokens`; RMS norms work in fp32; adapters of another precision than
the activations keep an input of their own; a quantised base restores one layer's weights at a
time; the loss takes its gradient with its value (`airtune.model.loss`), so logits exist twice in
fp32, for `loss_chunk` positions at a time. With checkpointing each block keeps its input, and one
block at a time the rest.

Not counted: the framework's floor, and what the C allocator keeps in fragments, which with glibc's
default can be half as much again as the tensors.

Expected error: saved tensors agree with torch's saved-tensor hooks within 1 %; the peak of a
process above its floor, fragments aside, within 5 % measured (`python -m benchmarks predict`). Half
precision is priced but not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.cost.graph import (
    ENCODERS,
    POST_NORM,
    Flow,
    KeptSizes,
    flows,
    kept,
    later_flow,
    reads,
    scored_positions,
    sizes,
    taught,
)
from airtune.cost.graph import targets as targeted
from airtune.cost.payload import held_bytes, trained_parameters
from airtune.plan import Assignments, Floats, ModelShape, Workload

SINGLE = 4
"""Bytes of a single-precision number, which norms and losses use whatever the model's."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the peak of a training step, in columns of shape (n,)."""

    weights: Floats
    """The sliced frozen base; the dense one beside it where a slice learns from that."""
    adapters: Floats
    """Adapters and the trained head."""
    gradients: Floats
    optimiser: Floats
    activations: Floats
    """Tensors saved for the backward pass, and what that pass needs beyond the logits' room."""
    logits: Floats
    """Logits of the positions that exist at a time, twice, and the loss's hidden states."""

    @property
    def total(self) -> Floats:
        """Peak bytes, shape (n,)."""
        return (
            self.weights
            + self.adapters
            + self.gradients
            + self.optimiser
            + self.activations
            + self.logits
        )


def peak_memory(shape: ModelShape, workload: Workload, assignments: Assignments) -> Memory:
    """Return the peak memory of a training step on each device, part by part.

    Args:
        shape: The unpruned model.
        workload: Batch, length, precision and memory-saving switches.
        assignments: Pruning, rank and cut of n devices.

    Returns:
        Columns of bytes, shape (n,).

    Raises:
        ModelError: if a LoRA target is no layer of this family.
    """
    left = kept(shape, assignments)
    trained = trained_parameters(shape, workload, assignments).astype(np.float64)
    trained = trained * workload.adapter_bytes
    teaches = taught(shape, workload, left)
    logits = left.whole * _logit_bytes(shape, workload) + teaches * _taught_bytes(shape, workload)
    saved = saved_bytes(shape, workload, assignments)
    beyond = _backward_bytes(shape, workload, left)
    return Memory(
        weights=held_bytes(shape, workload, left) + teaches * _dense_bytes(shape, workload),
        adapters=trained,
        gradients=trained,
        optimiser=trained * workload.optimiser_states,
        activations=saved + np.maximum(beyond - logits, 0.0),
        logits=logits,
    )


def _dense_bytes(shape: ModelShape, workload: Workload) -> float:
    """Bytes of the dense base's blocks, which a slice that learns from it holds beside its own."""
    block = float(shape.block_parameters(shape.kv_groups, shape.ffn))
    return shape.blocks * block * workload.base_bits / 8.0


def _taught_bytes(shape: ModelShape, workload: Workload) -> float:
    """The teacher's hidden states, and its logits twice for the positions that exist at a time."""
    positions = scored_positions(shape, workload)
    alive = min(positions, workload.loss_chunk or positions)
    rows = (positions + workload.batch * workload.tokens) * shape.width * workload.dtype_bytes
    return 2.0 * SINGLE * alive * shape.vocab + rows


def saved_bytes(shape: ModelShape, workload: Workload, assignments: Assignments) -> Floats:
    """Return the bytes autograd keeps of one batch between the passes, without logits, (n,).

    With gradient checkpointing these are the inputs of the blocks alone.
    """
    left = kept(shape, assignments)
    tokens = float(workload.batch * workload.tokens)
    first, later = flows(shape, workload)
    if workload.checkpointing:
        blocks = left.blocks * shape.width * workload.dtype_bytes
    else:
        blocks = _block_bytes(shape, workload, left, first)
        blocks = blocks + (left.blocks - 1.0) * _block_bytes(shape, workload, left, later)
    tail = left.whole * _tail_bytes(shape, workload, later)
    return np.asarray(tokens * blocks + tail + _shared_bytes(shape, workload), np.float64)


def server_saved_bytes(shape: ModelShape, workload: Workload, assignments: Assignments) -> Floats:
    """Return what the server keeps of each cut device's batch between the passes, (n,).

    Its blocks' saved tensors, the activation that arrived and the loss's tensors, logits included.
    """
    left = kept(shape, assignments)
    later = later_flow(shape, workload)
    tokens = float(workload.batch * workload.tokens)
    blocks = shape.blocks - left.blocks
    arrived = float(shape.width * workload.dtype_bytes)
    if workload.checkpointing:
        each = blocks * shape.width * workload.dtype_bytes
    else:
        each = blocks * _block_bytes(shape, workload, left, later)
    return np.asarray(tokens * (each + arrived) + head_work_bytes(shape, workload), np.float64)


def head_work_bytes(shape: ModelShape, workload: Workload) -> float:
    """Return what head and loss keep of one batch where adapters lie below them, logits included."""
    tail = _tail_bytes(shape, workload, later_flow(shape, workload))
    return tail + _logit_bytes(shape, workload)


def pass_bytes(shape: ModelShape, workload: Workload, assignments: Assignments) -> Floats:
    """Return what one block's pass holds at a time beside what is saved, (n,)."""
    return _backward_bytes(shape, workload, kept(shape, assignments))


def activation_copies(shape: ModelShape) -> int:
    """Return how many tensors of the FFN's width its activation keeps where gradients flow.

    GPT-2's tanh approximation is made of plain operations.
    """
    if shape.gated:
        return 3
    return 4 if shape.family == "gpt2" else 1


def _block_bytes(shape: ModelShape, workload: Workload, left: KeptSizes, flow: Flow) -> Floats:
    """Bytes a token that one block keeps for its backward pass, (n,)."""
    return (
        _attention_bytes(shape, workload, left, flow)
        + _norm_bytes(shape, workload, left, flow)
        + _ffn_bytes(shape, workload, left, flow)
        + _adapter_bytes(shape, workload, left, flow)
    )


def _attention_bytes(shape: ModelShape, workload: Workload, left: KeptSizes, flow: Flow) -> Floats:
    if not flow.context:
        return np.zeros(len(left.rank))
    numbers = 4.0 * left.query + workload.tokens
    # a norm a head keeps its input, before the rotation, and one number
    if shape.head_norms:
        norms = flow.query * (left.query + left.heads) + flow.key * (left.key + left.groups)
    else:
        norms = np.zeros(len(left.rank))
    if shape.gated and shape.linears[0].fused and shape.heads == shape.kv_groups:
        # rotation copies queries and keys, and the values keep the fused layer's whole output
        numbers = numbers + left.query + left.key
    return workload.dtype_bytes * numbers + SINGLE * (norms + left.heads)


def _norm_bytes(shape: ModelShape, workload: Workload, left: KeptSizes, flow: Flow) -> Floats:
    """What the block's norms keep: their input and one or two numbers a position."""
    # a post-norm block normalises after its attention and its FFN, a pre-norm one before
    before, after = (flow.hidden, flow.middle), (flow.middle, flow.output)
    inputs = [*before, *after] if shape.sandwich else after if shape.family in POST_NORM else before
    return np.full(len(left.rank), sum(inputs) * _one_norm_bytes(shape, workload))


def _ffn_bytes(shape: ModelShape, workload: Workload, left: KeptSizes, flow: Flow) -> Floats:
    # a gate keeps its activation's input, and the product the other factor for each side
    copies = 2 * flow.gate + flow.up if shape.gated else flow.gate * activation_copies(shape)
    return copies * workload.dtype_bytes * left.channels


def _adapter_bytes(shape: ModelShape, workload: Workload, left: KeptSizes, flow: Flow) -> Floats:
    """Inputs of the adapters and their rank-wide middles; one input serves equal readers."""
    total = np.zeros(len(left.rank))
    seen: set[str] = set()
    shared = workload.adapter_bytes == workload.dtype_bytes
    for linear in targeted(shape, workload):
        columns, _ = sizes(shape, linear, left)
        total = total + left.rank * workload.adapter_bytes
        place = reads(linear)
        # attention already keeps its output, the input of the output projection; Phi-3's partial
        # rotation lays the heads out in another order, so there the projection reads a copy
        is_shared = place == "context" and flow.context and shape.family != "phi3"
        is_kept = place in seen or is_shared
        if not (shared and is_kept):
            total = total + columns * workload.adapter_bytes
        seen.add(place)
    return total


def _one_norm_bytes(shape: ModelShape, workload: Workload) -> float:
    if shape.rms_norm:
        return float(SINGLE * (shape.width + 1))
    return float(workload.dtype_bytes * shape.width + 2 * SINGLE)


def _tail_bytes(shape: ModelShape, workload: Workload, flow: Flow) -> float:
    """What the final norm, pooler, classifier and loss keep of one batch."""
    rows = scored_positions(shape, workload) * shape.width * workload.dtype_bytes
    if shape.family in POST_NORM:
        # tanh or relu keeps its output; a trained dense layer the hidden states it reads from
        trained = workload.trains_head and shape.family != "bert"
        return rows + trained * rows * workload.tokens
    norm = flow.output * workload.batch * workload.tokens * _one_norm_bytes(shape, workload)
    if shape.family in ENCODERS:
        # the head's activation and norm keep their inputs
        norm = norm + rows + workload.batch * _one_norm_bytes(shape, workload)
    # a language model's loss keeps the gradient of its rows, a trained classifier its input
    return rows * (shape.task == "causal-lm" or workload.trains_head) + norm


def _shared_bytes(shape: ModelShape, workload: Workload) -> float:
    """The rotary tables, sine and cosine, that all blocks share."""
    return float(2 * shape.gated * workload.tokens * shape.head_dim * workload.dtype_bytes)


def _logit_bytes(shape: ModelShape, workload: Workload) -> float:
    """Logits and their exponentials, with the hidden states that the loss reads and gathers."""
    positions = scored_positions(shape, workload)
    if shape.task == "classification":
        return 2.0 * SINGLE * positions * shape.labels
    rows = (positions + workload.batch * workload.tokens) * shape.width * workload.dtype_bytes
    alive = min(positions, workload.loss_chunk or positions)
    return 2.0 * SINGLE * alive * shape.vocab + rows


def _backward_bytes(shape: ModelShape, workload: Workload, left: KeptSizes) -> Floats:
    """Bytes the backward pass of one block holds at a time beside what was saved, (n,).

    Two gradients of the residual stream and those of the FFN's inner tensors; the block itself
    where it was not kept; the widest layer's weights where they are stored quantised.
    """
    tokens = float(workload.batch * workload.tokens)
    inner = (3.0 if shape.gated else 2.0) * left.channels
    work = tokens * workload.dtype_bytes * (2.0 * shape.width + inner)
    if workload.checkpointing:
        later = flows(shape, workload)[1]
        work = work + tokens * _block_bytes(shape, workload, left, later)
    if workload.base_bits < 16:
        widest = np.max([np.prod(sizes(shape, each, left), axis=0) for each in shape.linears], 0)
        work = work + workload.dtype_bytes * widest
    return np.asarray(work, np.float64)
