"""What a model is made of, in numbers: enough to price and to decide, without a weight.

A `ModelShape` is made once from a Hugging Face config by `airtune.model.families`; the numeric
rooms see nothing else of a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

Axis = Literal["width", "query", "kv", "ffn"]
"""The side of a linear layer that pruning shrinks, or `width`, which it never does."""


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear layer of a block: `in_axis -> out_axis`, and the parts fused behind the latter."""

    name: str
    in_axis: Axis
    out_axis: Axis
    bias: bool = False
    fused: tuple[Axis, ...] = ()
    """What one matrix makes after `out_axis`: keys and values behind the queries (GPT-2, Phi-3,
    ModernBERT), the up projection behind the gate (Phi-3, ModernBERT)."""

    @property
    def parts(self) -> tuple[Axis, ...]:
        """All that the layer makes, in order of its rows."""
        return (self.out_axis, *self.fused)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a transformer whose blocks are all alike.

    Pruning removes whole key-value groups (a group is `heads // kv_groups` query heads with their
    one key-value head; for plain multi-head attention a group is a head) and whole FFN channels.
    """

    family: str
    task: Literal["causal-lm", "classification"]
    blocks: int
    width: int
    heads: int
    kv_groups: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool
    """The output layer shares the embedding's weights."""
    labels: int
    """Number of classes; 0 for a language model."""
    linears: tuple[Linear, ...]
    """The linear layers of one block, in order of use."""
    gated: bool
    """The FFN multiplies a gate and an up projection (Llama) instead of one (BERT), and positions are
    rotary."""
    embedding_parameters: int
    """Token, position and type embeddings with their norm."""
    block_extra_parameters: int
    """What a block holds beside its linear layers: the norms."""
    head_parameters: int
    """What comes after the blocks: final norm, untied output layer or pooler and classifier."""
    head_macs: int
    """Multiply-adds of the head for one scored position (a token, or a sentence)."""
    trained_head_parameters: int = 0
    """Parameters of the task head that are trained and sent where a recipe trains it: the
    classifier, without final norm or pooler; 0 for a language model."""
    rms_norm: bool = False
    """Norms divide by the root mean square, in single precision (Llama), instead of LayerNorm."""
    head_norms: bool = False
    """Queries and keys are normalised a head (Qwen3, Gemma 3)."""
    sandwich: bool = False
    """What attention and FFN put out is normalised as well as what they read (Gemma 3)."""

    @property
    def group_width(self) -> int:
        """Columns of the output projection that one key-value group owns."""
        return self.heads // self.kv_groups * self.head_dim

    def kept_groups(self, prune_heads: ArrayLike) -> Ints:
        """Whole groups that stay at a head pruning ratio, at least one; any array shape."""
        dropped = np.rint(np.asarray(prune_heads, dtype=np.float64) * self.kv_groups)
        return np.asarray(np.maximum(self.kv_groups - dropped, 1), np.int64)

    def kept_channels(self, prune_ffn: ArrayLike) -> Ints:
        """Whole FFN channels that stay at an FFN pruning ratio, at least one; any array shape."""
        dropped = np.rint(np.asarray(prune_ffn, dtype=np.float64) * self.ffn)
        return np.asarray(np.maximum(self.ffn - dropped, 1), np.int64)

    def span(self, axis: Axis) -> int:
        """Rows of an axis that one structure owns: a key-value group, or an FFN channel."""
        return {"query": self.group_width, "kv": self.head_dim, "ffn": 1, "width": self.width}[axis]

    def axis_size(self, axis: Axis, groups: ArrayLike, channels: ArrayLike) -> Ints:
        """Length of an axis when `groups` and `channels` are kept; any array shape."""
        groups, channels = np.asarray(groups, np.int64), np.asarray(channels, np.int64)
        if axis == "width":
            return np.full(np.broadcast_shapes(groups.shape, channels.shape), self.width, np.int64)
        return (channels if axis == "ffn" else groups) * self.span(axis)

    def linear_sizes(
        self, linear: Linear, groups: ArrayLike, channels: ArrayLike
    ) -> tuple[Ints, Ints]:
        """Return (in_features, out_features) of a block's linear layer after slicing."""
        rows = [self.axis_size(axis, groups, channels) for axis in linear.parts]
        return self.axis_size(linear.in_axis, groups, channels), np.asarray(sum(rows), np.int64)

    def block_parameters(self, groups: ArrayLike, channels: ArrayLike) -> Ints:
        """Parameters of one block when `groups` and `channels` are kept; any array shape."""
        sizes = [
            (self.linear_sizes(linear, groups, channels), linear.bias) for linear in self.linears
        ]
        counts = [columns * rows + (rows if bias else 0) for (columns, rows), bias in sizes]
        return np.asarray(sum(counts) + self.block_extra_parameters, np.int64)

    @property
    def parameters(self) -> int:
        """Parameters of the whole, unpruned model."""
        block = int(self.block_parameters(self.kv_groups, self.ffn))
        return self.embedding_parameters + self.blocks * block + self.head_parameters

    def pruned_fraction(self, prune_heads: ArrayLike, prune_ffn: ArrayLike) -> Floats:
        """Fraction of the blocks' linear parameters removed, after rounding to whole structures.

        This is the pruning rate rho of the literature; any array shape.
        """
        dense = int(self.block_parameters(self.kv_groups, self.ffn)) - self.block_extra_parameters
        kept = self.block_parameters(self.kept_groups(prune_heads), self.kept_channels(prune_ffn))
        return 1.0 - (kept - self.block_extra_parameters) / float(dense)
