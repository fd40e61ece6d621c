"""Structured pruning that physically removes key-value groups and FFN channels.

A sliced network is smaller: its linear layers lose rows and columns, so training it costs less
time and memory, which masks do not achieve. What was removed can be made up for (see `mending`).
Blocks may keep different counts; only uniform counts can be saved for other tools (see `save`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from airtune.errors import ModelError
from airtune.model.base import BaseModel
from airtune.model.families import replace_module_
from airtune.model.importance import Importance
from airtune.model.kept import Kept, check_kept, keep_all, linear_index
from airtune.model.mending import Mending, mended
from airtune.model.weights import bias_of, rebuilt, twin_of, weight_of
from airtune.plan import Floats, Ints, ModelShape

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


def slice_network(base: BaseModel, kept: Kept, *, mending: Mending | None = None) -> nn.Module:
    """Return a physically smaller network; the base stays as it is.

    Tensors that lose nothing are shared with the base, not copied.

    Args:
        base: The unpruned model.
        kept: What stays, block by block.
        mending: How the output projections make up for what they no longer read; None = not.

    Raises:
        ModelError: if `kept` does not fit the model, or a Gram matrix cannot be solved for.
    """
    check_kept(kept, base.shape)
    network = twin_of(base.network)
    for index, block in enumerate(base.family.block_list(network)):
        for linear in base.shape.linears:
            columns, rows = linear_index(base.shape, linear, kept, index)
            if columns is None and rows is None:
                continue
            path = base.family.linears[linear.name]
            module = block.get_submodule(path)
            change, constant = None, None
            if mending is not None and columns is not None:
                change, constant = mended(
                    weight_of(module), mending, linear, shape=base.shape, kept=kept, block=index
                )
            smaller = _sliced(module, columns, rows, change, constant)
            replace_module_(block, path, smaller)
        if base.family.resize_ is not None:
            base.family.resize_(block, base.shape, len(kept.groups[index]))
    return network


def _sliced(
    module: nn.Module,
    columns: Ints | None,
    rows: Ints | None,
    change: torch.Tensor | None,
    constant: torch.Tensor | None,
) -> nn.Module:
    """Return a layer of the same kind with these columns and rows, None = all of them.

    What mends it is added: `change` to the weight that is left, `constant` to the bias.
    """
    weight, bias = weight_of(module), bias_of(module)
    if rows is not None:
        index = torch.from_numpy(rows).to(weight.device)
        weight, bias = weight[index], None if bias is None else bias[index]
    if columns is not None:
        weight = weight[:, torch.from_numpy(columns).to(weight.device)]
    if change is not None:
        weight = (weight.double() + change).to(weight.dtype)
    if constant is not None:
        bias = (constant if bias is None else bias.double() + constant).to(weight.dtype)
    return rebuilt(module, weight, bias)


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
