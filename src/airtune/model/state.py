"""What the server holds between rounds, and what a device sends back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from airtune.model.base import BaseModel
from airtune.model.families import replace_module_
from airtune.model.importance import Importance
from airtune.model.kept import Kept
from airtune.model.lora import Adapters, Head, head_of, init_adapters
from airtune.model.mending import Grams
from airtune.model.weights import bias_of, rebuilt, twin_of, weight_of
from airtune.plan import Workload


@dataclass(frozen=True, slots=True)
class DeviceState:
    """What a device has left and knows, where pruning is cumulative."""

    kept: Kept
    """What its own pruning has left; removed structures never come back to it."""
    importance: Importance | None = None
    """Its own smoothed scores, NaN for what it no longer has."""


@dataclass(frozen=True, slots=True)
class GlobalState:
    """The server's model: adapters on the full grid of the frozen base, and what goes with them."""

    round: int
    """The round whose devices will start from it; 0 before the first."""
    adapters: Adapters
    """Of the largest rank."""
    head: Head
    """Trained task head; {} for a language model."""
    importance: Importance | None = None
    """Pooled over the devices that measured it."""
    kept: Kept | None = None
    """What a cumulative pruning has left of the model that the user gets; None = everything."""
    devices: Mapping[int, DeviceState] = field(default_factory=dict)
    """Where pruning is cumulative: what each device that has answered has left."""
    merged: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """`"{block}.{linear}"` -> (out, in): what the stacked rule has added to the base so far."""
    average: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Mean of the server's tensors over its rounds, by `"adapters/"`, `"head/"` or `"merged/"` and
    their names; {} where none is kept (`airtune.model.server`)."""
    velocity: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """What the last round moved each tensor by, with momentum; by the same names."""
    grams: Grams | None = None
    """Second moments of the dense model, pooled like the importance; None = not measured."""


@dataclass(frozen=True, slots=True)
class Update:
    """What one device sends after its local work."""

    device: int
    round: int
    kept: Kept
    rank: int
    adapters: Adapters
    """Of its own slice and rank; from `cut` on the server's, at full rank."""
    head: Head
    samples: int
    importance: Importance | None = None
    part: float = 1.0
    """Of what it was told, which it did before the deadline, in (0, 1]; its weight is as much less."""
    cut: int = 0
    """Blocks of its own, where the model was cut; 0 = all."""


def initial_state(base: BaseModel, workload: Workload, seed: int) -> GlobalState:
    """Return the state before the first round: fresh adapters and the head as loaded."""
    head = head_of(base.network, base.family) if workload.trains_head else {}
    return GlobalState(0, init_adapters(base.shape, workload, seed), head)


def current_base(base: BaseModel, state: GlobalState) -> BaseModel:
    """Return the base that this round's adapters belong to: with what has been merged into it.

    It is the base itself unless the stacked rule has merged something; blocks that are not here are
    passed over.
    """
    if not state.merged:
        return base
    network = twin_of(base.network)
    for name, delta in state.merged.items():
        block, _, linear = name.partition(".")
        if base.held is not None and int(block) >= base.held:
            continue
        path = base.family.path(int(block), linear)
        module = network.get_submodule(path)
        weight = weight_of(module)
        total = (weight.float() + delta.to(weight.device)).to(weight.dtype)
        replace_module_(network, path, rebuilt(module, total, bias_of(module)))
    return replace(base, network=network)
