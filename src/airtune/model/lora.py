"""LoRA factors as plain tensors, and a network that carries those of many devices at once.

A linear layer W with adapters computes `W x + s B A x`, A (rank, in), B (out, rank), s = alpha/rank
(Hu et al., arXiv 2106.09685). The factors of n devices are stacked to (n, rank, in) and
(n, out, rank) and meet the batch, which holds the devices one after the other, in one `bmm`: the
frozen base is passed once for all. One device is n = 1. peft computes the same (tested) and reads
what `save` writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import nn

from airtune.errors import ModelError
from airtune.keys import derive_seed
from airtune.model.families import Family, replace_module_
from airtune.model.kept import Kept, linear_index
from airtune.model.stacked import StackedHead, StackedLora
from airtune.model.weights import bias_of, rebuilt, shape_of, twin_of, weight_of
from airtune.plan import Ints, Linear, ModelShape, Workload

Adapters: TypeAlias = dict[str, torch.Tensor]
"""`"{block}.{linear}.A"` -> (rank, in), `"{block}.{linear}.B"` -> (out, rank)."""
Head: TypeAlias = dict[str, torch.Tensor]
"""The trained task head: name in the network's state dict -> tensor; {} for a language model."""


class LoraNetwork:
    """A network with the adapters, and where trained the heads, of n devices.

    `network` is the Hugging Face module to hand to `loss`; its input batch is (n * b, tokens), the
    devices one after the other.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Mapping[str, StackedLora],
        heads: Mapping[str, StackedHead],
        seeds: Sequence[int],
    ) -> None:
        """Hold what `attach` made; layers by `"{block}.{linear}"`, heads by module path."""
        self.network = network
        self.devices = len(seeds)
        self._layers = dict(layers)
        self._heads = dict(heads)
        self._seeds = tuple(seeds)
        self.set_step(0)

    @property
    def layers(self) -> Mapping[str, StackedLora]:
        """The adapted layers by `"{block}.{linear}"`, in order."""
        return self._layers

    def parameters(self) -> list[nn.Parameter]:
        """Return the stacked tensors that are trained."""
        modules = (*self._layers.values(), *self._heads.values())
        return [item for module in modules for item in module.parameters() if item.requires_grad]

    def train(self, mode: bool = True) -> LoraNetwork:
        """Switch dropout and gradient checkpointing on or off."""
        self.network.train(mode)
        return self

    def set_step(self, step: int) -> None:
        """Draw new dropout masks from now on; they depend on the device's seed and this number."""
        for index, layer in enumerate(self._layers.values()):
            if layer.dropout > 0.0:
                layer.seeds = tuple(
                    derive_seed(seed, "dropout", step, index) for seed in self._seeds
                )

    def adapters(self) -> list[Adapters]:
        """Return a copy of each device's factors."""
        stacks: dict[str, torch.Tensor] = {}
        for name, layer in self._layers.items():
            stacks |= {f"{name}.A": layer.a, f"{name}.B": layer.b}
        return self._unstacked(stacks)

    def heads(self) -> list[Head]:
        """Return a copy of each device's trained head; empty where none is trained."""
        stacks = {
            f"{path}.{name}": tensor
            for path, module in self._heads.items()
            for name, tensor in module.named_parameters()
        }
        return self._unstacked(stacks)

    def _unstacked(self, stacks: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        return [
            {name: stack[index].detach().clone() for name, stack in stacks.items()}
            for index in range(self.devices)
        ]


def init_adapters(shape: ModelShape, workload: Workload, seed: int) -> Adapters:
    """Return fresh full-grid adapters: A uniform (Kaiming, as in peft), B zero, on the CPU.

    Raises:
        ModelError: if a target is no linear layer of the model, or there is none.
    """
    adapters: Adapters = {}
    for linear in target_linears(shape, workload.lora_targets):
        columns, rows = shape.linear_sizes(linear, shape.kv_groups, shape.ffn)
        for block in range(shape.blocks):
            name = f"{block}.{linear.name}"
            stream = torch.Generator().manual_seed(derive_seed(seed, "lora", name))
            a = torch.empty(workload.rank, int(columns))
            adapters[f"{name}.A"] = a.uniform_(-1.0, 1.0, generator=stream) / math.sqrt(columns)
            adapters[f"{name}.B"] = torch.zeros(int(rows), workload.rank)
    return adapters


def target_linears(shape: ModelShape, targets: Sequence[str]) -> list[Linear]:
    """Return the linear layers that carry adapters, in order of use.

    Raises:
        ModelError: if a target is no linear layer of the model, or there is none.
    """
    known = [linear.name for linear in shape.linears]
    wrong = [name for name in targets if name not in known]
    if wrong or not targets:
        raise ModelError(
            f"LoRA targets of a {shape.family} model are {', '.join(known)}; "
            f"got {', '.join(wrong) or 'none'}; set lora.target_modules"
        )
    return [linear for linear in shape.linears if linear.name in targets]


def take(
    adapters: Mapping[str, torch.Tensor], shape: ModelShape, kept: Kept, rank: int
) -> Adapters:
    """Cut a device's slice and rank out of full-grid adapters: the first `rank` directions.

    Raises:
        ModelError: if the rank is larger than the adapters'.
    """
    sliced: Adapters = {}
    for name, a, b, (columns, rows) in _layers(adapters, shape, kept):
        if not 1 <= rank <= a.shape[0]:
            raise ModelError(f"rank must be between 1 and {a.shape[0]}, got {rank}")
        a, b = a[:rank], b[:, :rank]
        sliced[f"{name}.A"] = (a if columns is None else a[:, torch.from_numpy(columns)]).clone()
        sliced[f"{name}.B"] = (b if rows is None else b[torch.from_numpy(rows)]).clone()
    return sliced


def slice_of(
    name: str, shape: ModelShape, kept: Kept, rank: int
) -> tuple[slice | torch.Tensor, slice | torch.Tensor]:
    """Return where a factor, `"{block}.{linear}.A"` or B, of a slice and rank is on the full grid."""
    block, _, rest = name.partition(".")
    layer, _, factor = rest.rpartition(".")
    linear = next(item for item in shape.linears if item.name == layer)
    columns, rows = linear_index(shape, linear, kept, int(block))
    index = columns if factor == "A" else rows
    along = slice(None) if index is None else torch.from_numpy(index)
    return (slice(rank), along) if factor == "A" else (along, slice(rank))


def rescaled(adapters: Mapping[str, torch.Tensor], factor: float) -> Adapters:
    """Return adapters whose product is `factor` times as large; A stays as it is."""
    if factor == 1.0:
        return dict(adapters)
    return {name: item * factor if name.endswith(".B") else item for name, item in adapters.items()}


def scatter(adapters: Mapping[str, torch.Tensor], shape: ModelShape, kept: Kept) -> Adapters:
    """Put sliced adapters back on the full grid, zero where the device has nothing."""
    full: Adapters = {}
    linears = {linear.name: linear for linear in shape.linears}
    for name, a, b, (columns, rows) in _layers(adapters, shape, kept):
        sizes = shape.linear_sizes(linears[name.partition(".")[2]], shape.kv_groups, shape.ffn)
        wide, tall = a.new_zeros(a.shape[0], int(sizes[0])), b.new_zeros(int(sizes[1]), b.shape[1])
        wide[:, slice(None) if columns is None else torch.from_numpy(columns)] = a
        tall[slice(None) if rows is None else torch.from_numpy(rows)] = b
        full[f"{name}.A"], full[f"{name}.B"] = wide, tall
    return full


def layer_names(adapters: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the `"{block}.{linear}"` that carry adapters, in order."""
    return [key.removesuffix(".A") for key in adapters if key.endswith(".A")]


def attach(
    network: nn.Module,
    family: Family,
    stacks: Sequence[Mapping[str, torch.Tensor]],
    *,
    scale: float,
    dropout: float = 0.0,
    heads: Sequence[Mapping[str, torch.Tensor]] = (),
    seeds: Sequence[int] = (),
) -> LoraNetwork:
    """Return a network that carries the adapters of n devices; the one given stays as it is.

    Args:
        network: A base, dense or sliced.
        family: Its description.
        stacks: One set of adapters a device, all of the network's slice and of one rank.
        scale: alpha / rank, one constant for all ranks.
        dropout: Of the adapters' input, in [0, 1).
        heads: One trained head a device, or none where the task has no trained head.
        seeds: One a device, for dropout; by default 0, 1, ...

    Raises:
        ModelError: if there is no device, or the tensors do not fit the network or one another.
    """
    if not stacks or (heads and len(heads) != len(stacks)):
        raise ModelError(
            f"every device needs adapters, and a head if any has one; got {len(stacks)} sets of "
            f"adapters and {len(heads)} heads"
        )
    twin = twin_of(network)
    device = next(iter(network.parameters())).device
    layers = {name: _wrap(family, twin, name, stacks, scale) for name in layer_names(stacks[0])}
    for name, layer in layers.items():
        layer.dropout = dropout
        replace_module_(twin, _path(family, name), layer.to(device))
    stacked = _stacked_heads(heads) if heads and heads[0] else {}
    for path, module in stacked.items():
        replace_module_(twin, path, module.to(device))
    return LoraNetwork(twin, layers, stacked, seeds or range(len(stacks)))


def merged(
    network: nn.Module,
    family: Family,
    adapters: Mapping[str, torch.Tensor],
    *,
    scale: float,
    head: Mapping[str, torch.Tensor] | None = None,
) -> nn.Module:
    """Return a network with `W + s B A` in place of W, and the head if one is given.

    Args:
        network: A base, dense or sliced; stays as it is.
        family: Its description.
        adapters: Of the network's slice.
        scale: alpha / rank.
        head: Trained head, or None.
    """
    twin = twin_of(network)
    for name in layer_names(adapters):
        module = twin.get_submodule(_path(family, name))
        weight = weight_of(module)
        delta = adapters[f"{name}.B"].double() @ adapters[f"{name}.A"].double()
        total = weight.double() + scale * delta.to(weight.device)
        replace_module_(
            twin, _path(family, name), rebuilt(module, total.to(weight.dtype), bias_of(module))
        )
    for name, tensor in (head or {}).items():
        path, _, kind = name.rpartition(".")
        module = twin.get_submodule(path)
        old = module.get_parameter(kind)
        setattr(module, kind, nn.Parameter(tensor.to(old), requires_grad=False))
    return twin


def head_of(network: nn.Module, family: Family) -> Head:
    """Return a copy of the task head that classification trains; {} for a language model."""
    if not hasattr(network, family.head):
        return {}
    return {
        f"{path}.{name}": tensor.detach().float().cpu().clone()
        for path in family.heads
        for name, tensor in network.get_submodule(path).named_parameters()
    }


def _path(family: Family, name: str) -> str:
    block, _, linear = name.partition(".")
    return family.path(int(block), linear)


def _wrap(
    family: Family,
    network: nn.Module,
    name: str,
    stacks: Sequence[Mapping[str, torch.Tensor]],
    scale: float,
) -> StackedLora:
    module = network.get_submodule(_path(family, name))
    factors = []
    for part in ("A", "B"):
        tensors = [stack.get(f"{name}.{part}") for stack in stacks]
        shapes = {None if tensor is None else tuple(tensor.shape) for tensor in tensors}
        if len(shapes) > 1 or None in shapes:
            raise ModelError(
                f"adapters stacked on one network must be of one slice and rank, got {shapes} "
                f"for {name}.{part}; train them in separate passes"
            )
        factors.append(torch.stack([tensor for tensor in tensors if tensor is not None]))
    a, b = factors
    rows, columns = shape_of(module)
    if a.shape[2] != columns or b.shape[1] != rows or a.shape[1] != b.shape[2]:
        raise ModelError(
            f"adapters of {name} are {tuple(b.shape[1:])} x {tuple(a.shape[1:])} and its layer is "
            f"({rows}, {columns}); take the slice that the network has"
        )
    return StackedLora(module, a, b, scale)


def _stacked_heads(heads: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, StackedHead]:
    paths = dict.fromkeys(name.rpartition(".")[0] for name in heads[0])
    stacked = {}
    for path in paths:
        weight = torch.stack([head[f"{path}.weight"] for head in heads])
        has_bias = f"{path}.bias" in heads[0]
        bias = torch.stack([head[f"{path}.bias"] for head in heads]) if has_bias else None
        stacked[path] = StackedHead(weight, bias)
    return stacked


def _layers(
    adapters: Mapping[str, torch.Tensor], shape: ModelShape, kept: Kept
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor, tuple[Ints | None, Ints | None]]]:
    """Yield each adapted layer's name, A, B and kept (columns, rows)."""
    linears = {linear.name: linear for linear in shape.linears}
    for name in layer_names(adapters):
        block, _, linear = name.partition(".")
        index = linear_index(shape, linears[linear], kept, int(block))
        yield name, adapters[f"{name}.A"], adapters[f"{name}.B"], index
