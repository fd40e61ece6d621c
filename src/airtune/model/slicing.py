"""Structured pruning that physically removes key-value groups and FFN channels.

A sliced network is smaller: its linear layers lose rows and columns, so training it costs less
time and memory, which masks do not achieve. What was removed can be replaced by its mean, a
constant vector after each output projection (FLAP, arXiv 2312.11983). Blocks may keep different
counts; only uniform counts can be saved for other tools (see `save`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from airtune.errors import ModelError
from airtune.model.base import BaseModel
from airtune.model.families import Family, replace_module_
from airtune.model.importance import Importance, Means
from airtune.model.kept import Kept, check_kept, keep_all, linear_index, removed_index
from airtune.model.weights import bias_of, rebuilt, twin_of, weight_of
from airtune.plan import Floats, Ints, Linear, ModelShape

__all__ = ["Kept", "choose_kept", "keep_all", "slice_network"]


def choose_kept(importance: Importance, shape: ModelShape, groups: int, channels: int) -> Kept:
    """Keep the most important structures, the same number in every block.

    The ranking does not depend on the counts, so a heavier pruning keeps a subset of what a
    lighter one keeps; ties go to the lower index.

    Args:
        importance: Scores (blocks, groups) and (blocks, channels).
        shape: The unpruned model.
        groups: Key-value groups to keep in a block, at least 1.
        channels: FFN channels to keep in a block, at least 1.

    Raises:
        ModelError: if a count is out of range or a score is not finite.
    """
    _check_count("groups", groups, shape.kv_groups)
    _check_count("channels", channels, shape.ffn)
    return Kept(_largest(importance.groups, groups), _largest(importance.channels, channels))


def slice_network(base: BaseModel, kept: Kept, *, means: Means | None = None) -> nn.Module:
    """Return a physically smaller network; the base stays as it is.

    Tensors that lose nothing are shared with the base, not copied.

    Args:
        base: The unpruned model.
        kept: What stays, block by block.
        means: Mean inputs of the output projections; what is removed is replaced by its mean,
            as an addition to the projection's bias. None = by zero.

    Raises:
        ModelError: if `kept` does not fit the model.
    """
    check_kept(kept, base.shape)
    network = twin_of(base.network)
    for index, block in enumerate(base.family.block_list(network)):
        for linear in base.shape.linears:
            columns, rows = linear_index(base.shape, linear, kept, index)
            if columns is None and rows is None:
                continue
            path = base.family.linears[linear.name]
            mean = None if means is None else _removed_mean(base.shape, means, kept, linear, index)
            smaller = _sliced(block.get_submodule(path), columns, rows, mean)
            replace_module_(block, path, smaller)
        _set_fused_width_(block, base.family, base.shape, len(kept.groups[index]))
    return network


def _sliced(
    module: nn.Module,
    columns: Ints | None,
    rows: Ints | None,
    removed_mean: torch.Tensor | None,
) -> nn.Module:
    """Return a layer of the same kind with these columns and rows, None = all of them."""
    weight, bias = weight_of(module), bias_of(module)
    if removed_mean is not None:
        constant = weight.float() @ removed_mean.to(weight.device)
        bias = (constant if bias is None else bias.float() + constant).to(weight.dtype)
    if rows is not None:
        index = torch.from_numpy(rows).to(weight.device)
        weight, bias = weight[index], None if bias is None else bias[index]
    if columns is not None:
        weight = weight[:, torch.from_numpy(columns).to(weight.device)]
    return rebuilt(module, weight, bias)


def _removed_mean(
    shape: ModelShape, means: Means, kept: Kept, linear: Linear, block: int
) -> torch.Tensor | None:
    """Return the mean input of a layer where it is removed and zero elsewhere, (in,)."""
    removed = removed_index(shape, linear.in_axis, kept, block)
    if removed is None:
        return None
    mean = means.attention[block] if linear.in_axis == "query" else means.ffn[block]
    vector = np.zeros_like(mean)
    vector[removed] = mean[removed]
    return torch.from_numpy(vector).float()


def _set_fused_width_(block: nn.Module, family: Family, shape: ModelShape, groups: int) -> None:
    if family.fused_width:
        path, _, name = family.fused_width.rpartition(".")
        setattr(block.get_submodule(path), name, groups * shape.group_width)


def _largest(scores: Floats, count: int) -> tuple[Ints, ...]:
    if not np.all(np.isfinite(scores)):
        raise ModelError(
            "importance must be finite, got NaN or infinity; drop the batch it is from"
        )
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return tuple(np.sort(row).astype(np.int64) for row in order)


def _check_count(name: str, count: int, limit: int) -> None:
    if not 1 <= count <= limit:
        raise ModelError(f"{name} to keep must be between 1 and {limit}, got {count}")
