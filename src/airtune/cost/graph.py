"""What a plan leaves of a block, and where in its LoRA training graph gradients flow.

The base is frozen, so autograd keeps and computes only what an adapter needs:

    hidden --norm--> query, key, value --> scores --> context --> output --+--> middle
                                                                           |
    next <--+-- down <-- product <-- gate, up <--norm-----------------------+

An edge carries a gradient when an adapter sits before it. The embeddings are frozen, so in the
first block nothing before the first adapter does; every later block has gradients everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from airtune.errors import ModelError
from airtune.plan import Assignments, Floats, Linear, ModelShape, Workload

Place = Literal["hidden", "context", "middle", "product"]
"""The tensor that a linear layer reads."""

POST_NORM = frozenset({"bert", "roberta", "distilbert"})
"""Families whose norms follow attention and FFN, and which have none after the blocks."""
ENCODERS = POST_NORM | {"modernbert"}
"""Families whose head begins with a dense layer and ends with a classifier that has a bias."""


@dataclass(frozen=True, slots=True)
class KeptSizes:
    """Sizes after slicing, in columns of shape (n,), as floats so that large products fit."""

    blocks: Floats
    """Blocks held by the device: all, or those before the cut."""
    groups: Floats
    channels: Floats
    rank: Floats
    whole: Floats
    """1 where the device holds the whole model with its head, 0 where it is cut."""
    query: Floats
    """Width of all queries together: kept heads times their width."""
    key: Floats
    """Width of all keys together."""
    heads: Floats


@dataclass(frozen=True, slots=True)
class Flow:
    """Which tensors of one block carry a gradient."""

    hidden: bool
    """The block's input."""
    query: bool
    key: bool
    value: bool
    gate: bool
    """The FFN's gate, or its only inner projection where it is not gated."""
    up: bool
    output: bool
    """The block's output, hence the next block's input."""
    middle: bool
    """The residual stream between attention and FFN."""

    @property
    def scores(self) -> bool:
        """The attention scores."""
        return self.query or self.key

    @property
    def context(self) -> bool:
        """The weighted values, input of the output projection."""
        return self.scores or self.value

    @property
    def product(self) -> bool:
        """The FFN's inner activations, input of its last projection."""
        return self.gate or self.up

    def at(self, place: Place) -> bool:
        """Return whether the tensor that a layer reads carries a gradient."""
        return bool(getattr(self, place))


def kept(shape: ModelShape, assignments: Assignments) -> KeptSizes:
    """Return the sizes that pruning and cutting leave, whole groups and channels, (n,) each."""
    groups = shape.kept_groups(assignments.prune_heads).astype(np.float64)
    held = np.where(assignments.cut > 0, np.minimum(assignments.cut, shape.blocks), shape.blocks)
    return KeptSizes(
        blocks=held.astype(np.float64),
        groups=groups,
        channels=shape.kept_channels(assignments.prune_ffn).astype(np.float64),
        rank=assignments.rank.astype(np.float64),
        whole=(assignments.cut == 0).astype(np.float64),
        query=groups * shape.group_width,
        key=groups * shape.head_dim,
        heads=groups * (shape.heads // shape.kv_groups),
    )


def taught(shape: ModelShape, workload: Workload, left: KeptSizes) -> Floats:
    """Return 1 where a slice learns from the dense base beside it, 0 elsewhere, (n,)."""
    is_slice = (left.groups < shape.kv_groups) | (left.channels < shape.ffn)
    return np.asarray(is_slice & workload.distills & (left.whole > 0.0), np.float64)


def teacher_of(shape: ModelShape, left: KeptSizes) -> KeptSizes:
    """Return the dense base without adapters, (n,) times."""
    full = np.ones_like(left.groups)
    return replace(
        left,
        groups=full * shape.kv_groups,
        channels=full * shape.ffn,
        rank=0.0 * full,
        query=full * shape.heads * shape.head_dim,
        key=full * shape.kv_groups * shape.head_dim,
        heads=full * shape.heads,
    )


def sizes(shape: ModelShape, linear: Linear, left: KeptSizes) -> tuple[Floats, Floats]:
    """Return (in_features, out_features) of a sliced linear layer as floats, (n,) each."""
    lengths = {
        "width": np.full_like(left.query, shape.width),
        "query": left.query,
        "kv": left.key,
        "ffn": left.channels,
    }
    rows = np.sum([lengths[axis] for axis in linear.parts], axis=0)
    return lengths[linear.in_axis], np.asarray(rows, np.float64)


def reads(linear: Linear) -> Place:
    """Return which tensor of the block a linear layer reads, told from its axes.

    >>> reads(Linear("down_proj", "ffn", "width"))
    'product'
    """
    if linear.in_axis == "width":
        return "middle" if linear.out_axis == "ffn" else "hidden"
    return "context" if linear.in_axis == "query" else "product"


def targets(shape: ModelShape, workload: Workload) -> tuple[Linear, ...]:
    """Return the linear layers of a block that carry adapters, in order of use.

    Raises:
        ModelError: if a target is no layer of this family.
    """
    names = {linear.name for linear in shape.linears}
    if unknown := [name for name in workload.lora_targets if name not in names]:
        raise ModelError(
            f"unknown LoRA target {unknown[0]!r} for a {shape.family} model, allowed are "
            + ", ".join(linear.name for linear in shape.linears)
        )
    return tuple(linear for linear in shape.linears if linear.name in workload.lora_targets)


def flows(shape: ModelShape, workload: Workload) -> tuple[Flow, Flow]:
    """Return where gradients flow in the first block and in every later one."""
    names = {linear.name for linear in targets(shape, workload)}
    first = _flow(shape, names, hidden=False)
    return first, _flow(shape, names, hidden=first.output)


def later_flow(shape: ModelShape, workload: Workload) -> Flow:
    """Return where gradients flow in a block whose input needs one, whatever came before it."""
    return _flow(shape, {linear.name for linear in targets(shape, workload)}, hidden=True)


def scored_positions(shape: ModelShape, workload: Workload) -> float:
    """Return the positions of one batch that the head computes: scored tokens, or sequences."""
    if shape.task == "classification":
        return float(workload.batch)
    return workload.batch * workload.tokens * workload.scored


def _flow(shape: ModelShape, names: set[str], *, hidden: bool) -> Flow:
    attention = [linear for linear in shape.linears if reads(linear) == "hidden"]
    # a fused layer makes queries, keys and values at once
    query, key, value = [
        hidden or linear.name in names for linear in attention for _ in linear.parts
    ]
    inner = [linear for linear in shape.linears if reads(linear) == "middle"]
    (output,) = [linear for linear in shape.linears if reads(linear) == "context"]
    (down,) = [linear for linear in shape.linears if reads(linear) == "product"]
    middle = hidden or query or key or value or output.name in names
    flow = [middle or linear.name in names for linear in inner]
    return Flow(
        hidden=hidden,
        query=query,
        key=key,
        value=value,
        middle=middle,
        gate=flow[0],
        up=flow[-1],
        output=any(flow) or down.name in names,
    )
