"""How much each key-value group and FFN channel matters, without a gradient.

fluctuation: variance of a channel's input to the output projection times that projection's squared
column norm, summed over a group (FLAP, arXiv 2312.11983, section 3) · magnitude: sum of squared
weights of a structure · random: a control. The mean input is recorded beside the score: it is what
a removed structure is replaced by.

Scores are divided by their block's mean, so that they can be compared over blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from airtune.errors import ModelError
from airtune.keys import generator
from airtune.model.batch import Batch
from airtune.model.families import Family, family_of
from airtune.model.kept import Kept, keep_all, linear_index
from airtune.model.weights import weight_of
from airtune.plan import Floats, Linear, ModelShape

Criterion = Literal["fluctuation", "magnitude", "random"]


@dataclass(frozen=True, slots=True)
class Means:
    """Mean inputs of the output projections; NaN where a sliced model could not measure."""

    attention: Floats
    """(blocks, heads * head_dim)."""
    ffn: Floats
    """(blocks, ffn)."""


@dataclass(frozen=True, slots=True)
class Importance:
    """Scores, larger = keep; NaN where a sliced model could not measure."""

    groups: Floats
    """(blocks, kv_groups)."""
    channels: Floats
    """(blocks, ffn)."""
    means: Means | None = None


class _Moments:
    """Running sum and sum of squares of a layer's inputs at real tokens, in float64."""

    def __init__(self) -> None:
        self.mask: torch.Tensor | None = None
        self.count = 0
        self.mean: torch.Tensor | float = 0.0
        self.squares: torch.Tensor | float = 0.0

    def __call__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """Take in one batch, (batch, tokens, in); a forward pre-hook (Chan's update)."""
        values = inputs[0].detach()
        if self.mask is not None:
            values = values[self.mask]
        values = values.reshape(-1, values.shape[-1]).double()
        fresh, mean = values.shape[0], values.mean(0)
        total = self.count + fresh
        delta = mean - self.mean
        self.squares = (
            self.squares + (values - mean).square().sum(0) + delta**2 * (self.count * fresh / total)
        )
        self.mean = self.mean + delta * (fresh / total)
        self.count = total

    def result(self) -> tuple[Floats, Floats]:
        """Return the mean and the variance, (in,) each."""
        mean, squares = torch.as_tensor(self.mean), torch.as_tensor(self.squares)
        return mean.cpu().numpy(), (squares / self.count).cpu().numpy()


def measure(
    network: nn.Module,
    shape: ModelShape,
    batches: Iterable[Batch],
    *,
    criterion: Criterion = "fluctuation",
    kept: Kept | None = None,
    seed: int = 0,
) -> Importance:
    """Score every structure of a network.

    Args:
        network: Dense, or sliced by `kept`; with or without adapters, which do not count in the
            weights but do in what the layers read.
        shape: The unpruned model.
        batches: About four batches of real data; needed by fluctuation and for the means.
        criterion: What a structure's worth is.
        kept: What the network still has; what it lacks scores NaN. None = everything.
        seed: For the random criterion.

    Raises:
        ModelError: if fluctuation gets no batch, or the criterion is not one of these.
    """
    kept = keep_all(shape) if kept is None else kept
    family = family_of(network.config)
    moments = _moments(network, family, shape.blocks, batches)
    means = _means(shape, kept, moments) if moments else None
    if criterion == "fluctuation":
        if not moments:
            raise ModelError("fluctuation is measured on data and got no batch; give at least one")
        raw = _fluctuation(network, family, shape, kept, moments)
    elif criterion == "magnitude":
        raw = _magnitude(network, family, shape, kept)
    elif criterion == "random":
        draw = generator(seed, "importance")
        raw = draw.random((shape.blocks, shape.kv_groups)), draw.random((shape.blocks, shape.ffn))
    else:
        raise ModelError(
            f"importance {criterion!r} is not available; use fluctuation, magnitude or random"
        )
    return Importance(_comparable(raw[0]), _comparable(raw[1]), means)


def pool(importances: Sequence[Importance], weights: Sequence[float]) -> Importance:
    """Return the weighted mean over devices, each structure over those that measured it.

    Args:
        importances: One a device, all of one model.
        weights: One a device, not negative.

    Raises:
        ModelError: if there is none, or counts differ.
    """
    if not importances or len(importances) != len(weights):
        raise ModelError(
            f"pooling needs one weight a device, got {len(weights)} for {len(importances)} devices"
        )
    means = [item.means for item in importances if item.means is not None]
    pooled = None
    if len(means) == len(importances):
        pooled = Means(
            _weighted([item.attention for item in means], weights),
            _weighted([item.ffn for item in means], weights),
        )
    return Importance(
        _weighted([item.groups for item in importances], weights),
        _weighted([item.channels for item in importances], weights),
        pooled,
    )


@torch.no_grad()
def _moments(
    network: nn.Module, family: Family, blocks: int, batches: Iterable[Batch]
) -> dict[tuple[int, str], _Moments]:
    """Run the batches and watch what the output projections read."""
    names = (family.attention_output, family.ffn_output)
    watched = {(block, name): _Moments() for block in range(blocks) for name in names}
    handles = [
        family.linear(network, block, name).register_forward_pre_hook(moments)
        for (block, name), moments in watched.items()
    ]
    backbone, was_training = network.get_submodule(family.backbone), network.training
    seen = 0
    try:
        network.eval()
        for batch in batches:
            for moments in watched.values():
                moments.mask = batch.attention_mask.bool()
            backbone(**batch.inputs)
            seen += 1
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    return watched if seen else {}


def _means(shape: ModelShape, kept: Kept, moments: dict[tuple[int, str], _Moments]) -> Means:
    rows: dict[str, list[Floats]] = {"query": [], "ffn": []}
    for (block, name), item in moments.items():
        linear = next(linear for linear in shape.linears if linear.name == name)
        index, _ = linear_index(shape, linear, kept, block)
        size = int(shape.axis_size(linear.in_axis, shape.kv_groups, shape.ffn))
        rows[linear.in_axis].append(_spread(item.result()[0], index, size))
    return Means(np.stack(rows["query"]), np.stack(rows["ffn"]))


def _fluctuation(
    network: nn.Module,
    family: Family,
    shape: ModelShape,
    kept: Kept,
    moments: dict[tuple[int, str], _Moments],
) -> tuple[Floats, Floats]:
    groups, channels = [], []
    for block in range(shape.blocks):
        heads, ffn = (
            moments[block, name].result()[1]
            * _plain(family.linear(network, block, name)).square().sum(0).cpu().numpy()
            for name in (family.attention_output, family.ffn_output)
        )
        per_group = heads.reshape(-1, shape.group_width).sum(1)
        groups.append(_spread(per_group, kept.groups[block], shape.kv_groups))
        channels.append(_spread(ffn, kept.channels[block], shape.ffn))
    return np.stack(groups), np.stack(channels)


def _magnitude(
    network: nn.Module, family: Family, shape: ModelShape, kept: Kept
) -> tuple[Floats, Floats]:
    groups, channels = [], []
    for block in range(shape.blocks):
        scores = {
            "attention": np.zeros(len(kept.groups[block])),
            "ffn": np.zeros(len(kept.channels[block])),
        }
        for linear in shape.linears:
            squares = _plain(family.linear(network, block, linear.name)).square()
            axis, sums = (linear.in_axis, squares.sum(0))
            if axis == "width":
                axis, sums = linear.out_axis, per_structure(squares.sum(1), shape, linear)
            kind = "ffn" if axis == "ffn" else "attention"
            scores[kind] += sums.cpu().numpy().reshape(len(scores[kind]), -1).sum(1)
        groups.append(_spread(scores["attention"], kept.groups[block], shape.kv_groups))
        channels.append(_spread(scores["ffn"], kept.channels[block], shape.ffn))
    return np.stack(groups), np.stack(channels)


def per_structure(sums: torch.Tensor, shape: ModelShape, linear: Linear) -> torch.Tensor:
    """Add up a score a row by the structure that owns the row, in every part of a fused layer.

    Args:
        sums: One number a row of the layer, sliced or not, (out,).
        shape: The unpruned model.
        linear: Whose rows they are; it makes no `width`.

    Returns:
        One number a structure that is left, (groups,) or (channels,).
    """
    spans = [shape.span(axis) for axis in linear.parts]
    count = len(sums) // sum(spans)
    parts = torch.split(sums, [count * span for span in spans])
    return torch.stack([part.reshape(count, -1).sum(1) for part in parts]).sum(0)


def _plain(module: nn.Module) -> torch.Tensor:
    """Return a layer's own weight in float64, seen through an adapter that wraps it."""
    return weight_of(getattr(module, "base", module)).double()


def _spread(values: Floats, index: np.ndarray | None, size: int) -> Floats:
    """Put the values of what is kept on the full grid, NaN elsewhere."""
    if index is None:
        return values
    full = np.full(size, np.nan)
    full[index] = values
    return full


def _comparable(scores: Floats) -> Floats:
    mean = np.nanmean(scores, axis=1, keepdims=True)
    return np.asarray(scores / np.where(mean > 0, mean, 1.0))


def _weighted(values: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """Return the weighted mean over devices, NaN where none measured."""
    stack = np.stack(values)
    weight = np.where(np.isnan(stack), 0.0, np.reshape(weights, (-1, *(1,) * (stack.ndim - 1))))
    total = weight.sum(0)
    mean = (np.nan_to_num(stack) * weight).sum(0) / np.where(total > 0, total, 1.0)
    return np.asarray(np.where(total > 0, mean, np.nan))
