"""How much each structure matters to the loss, from gradients that LoRA training has anyway.

lora-gradient   the gradient of a weight estimated from those of its factors alone,

        G = dB A + B dA - dB dA,    I = |G * (W + s B A)| summed over a structure,

    where dA and dB are the factors' gradients (LoRAPrune, arXiv 2305.18403; FedSpine, arXiv
    2501.02438). No gradient of a frozen weight is ever made · salience   `sum |dL/dH| * sum |H|` of
    what the output projections read, plus the root of its kurtosis (APT, arXiv 2401.12200) ·
    first-order   `sum |w * grad w|` on the dense base, one calibration pass (LLM-Pruner, arXiv
    2305.11627).

Each reading is divided by its block's mean over heads, or over channels, so that blocks compare;
readings are smoothed over steps by an exponential mean. What is held between steps is one number
a structure; weight-sized tensors live for a few rows of one layer at a time. The normalisation and
the equal parts of salience and kurtosis are reconstructed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from airtune.errors import ModelError
from airtune.model.base import BaseModel
from airtune.model.batch import Batch
from airtune.model.families import Family, family_of, replace_module_
from airtune.model.importance import Importance, per_structure
from airtune.model.kept import Kept
from airtune.model.lora import LoraNetwork
from airtune.model.loss import batch_losses
from airtune.model.stacked import StackedLora
from airtune.model.weights import bias_of, rebuilt, twin_of, weight_of
from airtune.plan import Floats, ImportanceKind, Linear, ModelShape

DECAY = {"lora-gradient": 0.9, "salience": 0.85}
"""Share of the past in the exponential mean; the kinds that are measured while training."""
CHUNK_NUMBERS = 1 << 18
"""Weight-sized numbers that exist at a time, twice."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one device has measured over its steps."""

    importance: Importance
    """Smoothed; NaN for what the device's slice lacks."""
    total: float
    """Mean over the steps of the sum over all structures, not normalised."""


class Tracker(Protocol):
    """Watches a network of n devices while it trains."""

    def before(self, batch: Batch) -> None:
        """Get ready for a step on this batch."""
        ...

    def after(self, usable: torch.Tensor) -> None:
        """Read the gradients of the step, of the devices that are usable, shape (n,)."""
        ...

    def readings(self) -> list[Reading]:
        """Return what each device has measured."""
        ...


def tracker(
    kind: ImportanceKind,
    lora: LoraNetwork,
    shape: ModelShape,
    kept: Kept,
    start: Sequence[Importance | None],
) -> Tracker | None:
    """Return what measures a kind of importance while training, or None for the other kinds.

    Args:
        kind: What a structure's worth is.
        lora: The network of n devices.
        shape: The unpruned model.
        kept: The slice that the network is.
        start: What each device measured in earlier rounds; None = nothing yet.
    """
    if kind not in DECAY:
        return None
    smoothed = _Smoothed(shape, kept, start, DECAY[kind])
    if kind == "salience":
        return SalienceTracker(lora, shape, smoothed)
    return GradientTracker(lora, shape, smoothed)


class _Smoothed:
    """Exponential means of readings: one number a structure and device, in float64."""

    def __init__(
        self, shape: ModelShape, kept: Kept, start: Sequence[Importance | None], decay: float
    ) -> None:
        self.shape, self.kept, self.decay = shape, kept, decay
        self.groups = _columns(
            kept.groups, [None if item is None else item.groups for item in start]
        )
        self.channels = _columns(
            kept.channels, [None if item is None else item.channels for item in start]
        )
        self._totals = torch.zeros(len(start), dtype=torch.float64)
        self._steps = torch.zeros(len(start), dtype=torch.float64)

    def add(
        self, groups: Sequence[torch.Tensor], channels: Sequence[torch.Tensor], usable: torch.Tensor
    ) -> None:
        """Take in one step's sums: (n, kept) a block each; steps with NaN are skipped."""
        rows = [row.detach().double().cpu() for row in (*groups, *channels)]
        total = torch.stack([row.sum(1) for row in rows]).sum(0)
        good = usable.cpu() & torch.isfinite(total)
        self._totals += torch.where(good, total, 0.0)
        self._steps += good
        self._mix_(self.groups, rows[: len(groups)], good)
        self._mix_(self.channels, rows[len(groups) :], good)

    def _mix_(
        self, held: list[torch.Tensor], fresh: Sequence[torch.Tensor], good: torch.Tensor
    ) -> None:
        for block, row in enumerate(fresh):
            mean = row.mean(1, keepdim=True)
            value = row / torch.where(mean > 0, mean, 1.0)
            old = held[block]
            mixed = torch.where(old.isnan(), value, self.decay * old + (1.0 - self.decay) * value)
            held[block] = torch.where(good[:, None], mixed, old)

    def readings(self) -> list[Reading]:
        """Return the readings of each device on the full grid."""
        totals = (self._totals / self._steps.clamp_min(1.0)).tolist()
        return [
            Reading(
                Importance(
                    _full(self.groups, self.kept.groups, self.shape.kv_groups, index),
                    _full(self.channels, self.kept.channels, self.shape.ffn, index),
                ),
                total,
            )
            for index, total in enumerate(totals)
        ]


class GradientTracker:
    """Importance from the gradients of the LoRA factors alone."""

    def __init__(self, lora: LoraNetwork, shape: ModelShape, smoothed: _Smoothed) -> None:
        """Watch the adapted layers of a network."""
        self._lora, self._shape, self._smoothed = lora, shape, smoothed

    def before(self, batch: Batch) -> None:
        """Do nothing: the gradients are enough."""

    def after(self, usable: torch.Tensor) -> None:
        """Sum `|G * (W + s B A)|` over each structure of each device."""
        linears = {linear.name: linear for linear in self._shape.linears}
        groups = [torch.zeros(self._lora.devices, len(row)) for row in self._smoothed.kept.groups]
        channels = [
            torch.zeros(self._lora.devices, len(row)) for row in self._smoothed.kept.channels
        ]
        for name, layer in self._lora.layers.items():
            block, linear = int(name.partition(".")[0]), linears[name.partition(".")[2]]
            is_ffn = "ffn" in (linear.in_axis, linear.out_axis)
            sums = (channels if is_ffn else groups)[block]
            for device in range(self._lora.devices):
                sums[device] += _structure_sums(layer, device, linear, self._shape).cpu()
        self._smoothed.add(groups, channels, usable)

    def readings(self) -> list[Reading]:
        """Return what each device has measured."""
        return self._smoothed.readings()


@torch.no_grad()
def _structure_sums(
    layer: StackedLora, device: int, linear: Linear, shape: ModelShape
) -> torch.Tensor:
    """Return the importance of one layer's structures for one device, (structures,)."""
    a, b = layer.a[device], layer.b[device]
    if layer.a.grad is None or layer.b.grad is None:
        raise ModelError("importance is read after the backward pass; there are no gradients yet")
    da, db = layer.a.grad[device], layer.b.grad[device]
    # dB A + B dA - dB dA as one product of factors twice the rank
    tall, wide = torch.cat([db, b], 1), torch.cat([a - da, da], 0)
    weight = weight_of(layer.base)
    by_row = linear.in_axis == "width"
    rows = max(1, CHUNK_NUMBERS // weight.shape[1])
    sums = []
    for start in range(0, weight.shape[0], rows):
        part = slice(start, start + rows)
        whole = torch.addmm(weight[part].to(a.dtype), b[part], a, alpha=layer.scale)
        worth = (tall[part] @ wide).mul_(whole).abs_()
        sums.append(worth.sum(1 if by_row else 0))
    if by_row:
        return per_structure(torch.cat(sums), shape, linear)
    return torch.stack(sums).sum(0).reshape(-1, shape.span(linear.in_axis)).sum(1)


class SalienceTracker:
    """Importance from what the output projections read and its gradient."""

    def __init__(self, lora: LoraNetwork, shape: ModelShape, smoothed: _Smoothed) -> None:
        """Watch the output projections of a network."""
        self._smoothed, self._devices = smoothed, lora.devices
        self._mask: torch.Tensor | None = None
        self._read: dict[tuple[int, bool], torch.Tensor] = {}
        self._pulled: dict[tuple[int, bool], torch.Tensor] = {}
        family = family_of(lora.network.config)
        for block in range(shape.blocks):
            for is_ffn, name in ((False, family.attention_output), (True, family.ffn_output)):
                module = family.linear(lora.network, block, name)
                module.register_forward_pre_hook(self._watch((block, is_ffn)))

    def before(self, batch: Batch) -> None:
        """Remember which tokens are real."""
        self._mask = batch.attention_mask.bool()

    def after(self, usable: torch.Tensor) -> None:
        """Multiply what was read by how the loss pulls at it."""
        parts: dict[bool, list[torch.Tensor]] = {False: [], True: []}
        kept = self._smoothed.kept
        for index in sorted(self._read):
            block, is_ffn = index
            structures = len((kept.channels if is_ffn else kept.groups)[block])
            strength, tails = self._read[index]
            worth = (strength * self._pulled[index]).reshape(self._devices, structures, -1).sum(2)
            tail = tails.reshape(self._devices, structures, -1).mean(2)
            # both parts in units of their own mean, so that neither drowns the other
            scale = worth.mean(1, keepdim=True)
            parts[is_ffn].append(worth + scale * tail / tail.mean(1, keepdim=True))
        self._smoothed.add(parts[False], parts[True], usable)

    def readings(self) -> list[Reading]:
        """Return what each device has measured."""
        return self._smoothed.readings()

    def _watch(
        self, place: tuple[int, bool]
    ) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            values = inputs[0]
            if not values.requires_grad:
                values = values.detach().requires_grad_()
            if torch.is_grad_enabled():
                values.register_hook(partial(self._pull, place))  # type: ignore[no-untyped-call]
            self._read[place] = self._moments(values.detach())
            return (values, *inputs[1:])

        return hook

    def _pull(self, place: tuple[int, bool], pull: torch.Tensor) -> None:
        self._pulled[place] = self._rows(pull).abs().sum(1)

    def _rows(self, values: torch.Tensor) -> torch.Tensor:
        """Return (n, tokens, in) with zeros where there is padding."""
        if self._mask is not None:
            values = values * self._mask[..., None]
        return values.reshape(self._devices, -1, values.shape[-1])

    def _moments(self, values: torch.Tensor) -> torch.Tensor:
        """Return sum |H| and the root of the kurtosis of each channel, (2, n, in)."""
        rows = self._rows(values)
        squares = rows.square()
        spread = squares.mean(1).clamp_min(torch.finfo(rows.dtype).tiny)
        kurtosis = squares.square().mean(1) / spread.square().clamp_min(1e-30)
        return torch.stack([rows.abs().sum(1), kurtosis.sqrt()])


def first_order(base: BaseModel, batches: Iterable[Batch]) -> Importance:
    """Score the structures of the dense base by `sum |w * grad w|`, gradients summed over batches.

    It needs the gradient of every weight of the blocks, and so the memory of full training: a
    control that no small device could compute.

    Args:
        base: The dense model, without adapters.
        batches: Calibration data, at least one batch.

    Raises:
        ModelError: if there is no batch, the base is in 4 bits, or the gradients are not finite.
    """
    shape, family = base.shape, base.family
    if getattr(base.network, "is_quantized", False):
        raise ModelError(
            "first-order importance needs gradients of weights, which a 4-bit base has none of; "
            "set model.load_in_4bit to false"
        )
    network = _trainable(base)
    seen = 0
    for batch in batches:
        torch.autograd.backward(batch_losses(network, batch).sum())
        seen += 1
    if not seen:
        raise ModelError("first-order importance is measured on data and got no batch")
    groups = np.zeros((shape.blocks, shape.kv_groups))
    channels = np.zeros((shape.blocks, shape.ffn))
    for block in range(shape.blocks):
        for linear in shape.linears:
            is_ffn = "ffn" in (linear.in_axis, linear.out_axis)
            scores = channels if is_ffn else groups
            scores[block] += _first_order_sums(network, family, block, linear, shape)
    if not (np.isfinite(groups).all() and np.isfinite(channels).all()):
        raise ModelError("first-order importance is not finite; check the data and the model")
    return Importance(_comparable(groups), _comparable(channels))


def _trainable(base: BaseModel) -> nn.Module:
    """Return a twin whose blocks' linear layers take gradients; the weights are shared."""
    network = twin_of(base.network)
    for block in range(base.shape.blocks):
        for linear in base.shape.linears:
            path = base.family.path(block, linear.name)
            module = network.get_submodule(path)
            twin = rebuilt(module, weight_of(module), bias_of(module))
            twin.get_parameter("weight").requires_grad_()
            replace_module_(network, path, twin)
    return network.eval()


def _first_order_sums(
    network: nn.Module, family: Family, block: int, linear: Linear, shape: ModelShape
) -> Floats:
    module = family.linear(network, block, linear.name)
    weight, gradient = module.get_parameter("weight"), module.get_parameter("weight").grad
    if gradient is None:
        raise ModelError(f"{linear.name} of block {block} does not reach the loss")
    worth = (weight.detach() * gradient).abs().double()
    if isinstance(module, Conv1D):
        worth = worth.T
    if linear.in_axis == "width":
        sums = per_structure(worth.sum(1), shape, linear)
    else:
        sums = worth.sum(0).reshape(-1, shape.span(linear.in_axis)).sum(1)
    return np.asarray(sums.cpu().numpy())


def _comparable(scores: Floats) -> Floats:
    mean = scores.mean(axis=1, keepdims=True)
    return np.asarray(scores / np.where(mean > 0, mean, 1.0))


def _columns(kept: Sequence[np.ndarray], start: Sequence[Floats | None]) -> list[torch.Tensor]:
    """Return what each device knows of what it kept, (n, kept) a block; NaN where nothing."""
    return [
        torch.from_numpy(
            np.stack(
                [np.full(len(row), np.nan) if one is None else one[block][row] for one in start]
            )
        )
        for block, row in enumerate(kept)
    ]


def _full(held: list[torch.Tensor], kept: Sequence[np.ndarray], size: int, place: int) -> Floats:
    full = np.full((len(kept), size), np.nan)
    for block, row in enumerate(kept):
        full[block, row] = held[block][place].numpy()
    return full
