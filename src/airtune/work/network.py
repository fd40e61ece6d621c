"""The networks of a round: the dense base as it stands, and a device's slice of it."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel

from airtune.errors import ModelError
from airtune.model.base import BaseModel
from airtune.model.families import replace_module_
from airtune.model.kept import Kept, keep_all
from airtune.model.lora import LoraNetwork, attach
from airtune.model.slicing import choose_kept
from airtune.model.state import GlobalState
from airtune.model.weights import bias_of, rebuilt, twin_of, weight_of
from airtune.plan import Assignment, ModelShape


def current_base(base: BaseModel, state: GlobalState) -> BaseModel:
    """Return the base with what the stacked rule has merged into it so far."""
    if not state.merged:
        return base
    network = twin_of(base.network)
    if not isinstance(network, PreTrainedModel):
        raise ModelError(f"a base must be a transformers model, got {type(network).__name__}")
    for name, delta in state.merged.items():
        block, _, linear = name.partition(".")
        path = base.family.path(int(block), linear)
        module = network.get_submodule(path)
        weight = weight_of(module)
        total = (weight.float() + delta.to(weight.device)).to(weight.dtype)
        replace_module_(network, path, rebuilt(module, total, bias_of(module)))
    return replace(base, network=network)


def kept_by(row: Assignment, state: GlobalState, shape: ModelShape) -> Kept:
    """Return what a device keeps under its assignment: the most important structures.

    Raises:
        ModelError: if something is to be pruned and no importance was measured.
    """
    groups, channels = (
        int(shape.kept_groups(row.prune_heads)),
        int(shape.kept_channels(row.prune_ffn)),
    )
    if groups == shape.kv_groups and channels == shape.ffn:
        return keep_all(shape)
    if state.importance is None:
        raise ModelError(
            f"device {row.device} is told to prune, but no importance was measured; "
            "measure it before the first round that prunes"
        )
    return choose_kept(state.importance, shape, groups, channels)


def tuned_network(base: BaseModel, state: GlobalState, *, scale: float) -> LoraNetwork:
    """Return the model the user will get: the dense base with the global adapters and head."""
    dense = current_base(base, state)
    return attach(
        dense.network,
        dense.family,
        [state.adapters],
        scale=scale,
        heads=[state.head] if state.head else (),
    ).train(False)
