"""What is done to the gradients of a step before the optimiser: read, penalised, clipped, by device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from airtune.model.batch import Batch
from airtune.model.importance import Importance
from airtune.model.kept import Kept
from airtune.model.lora import LoraNetwork
from airtune.model.sensitivity import Reading, Tracker, tracker
from airtune.plan import ModelShape, WorkSpec

SMALLEST = 1e-12
"""Norm below which a factor's tail counts as zero."""


def clip_(parameters: Sequence[nn.Parameter], *, limit: float) -> torch.Tensor:
    """Scale each device's gradient, along the first axis, to the limit; return norms (devices,)."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(parameters[0].shape[0])
    squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients])
    norms = squares.sum(0).sqrt()
    if limit > 0:
        factor = (limit / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.reshape(-1, *[1] * (gradient.dim() - 1)))
    return norms


def pull_back_(
    parameters: Sequence[nn.Parameter], start: Sequence[torch.Tensor], *, weight: float
) -> None:
    """Add the gradient of FedProx's `weight / 2 * |p - start|^2` (arXiv 1812.06127)."""
    for parameter, origin in zip(parameters, start, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - origin, alpha=weight)


def left_of_tail(rank: int, share: float) -> int:
    """Return the directions before the tail: `floor(share * rank)`, at least one.

    >>> left_of_tail(8, 0.99), left_of_tail(1, 0.99)
    (7, 1)
    """
    return max(1, math.floor(share * rank))


@torch.no_grad()
def shrink_tail_(lora: LoraNetwork, *, weight: float, share: float) -> None:
    """Add the gradient of HETLoRA's `weight * |B[:, k:]| |A[k:]|` of each layer, k before the tail.

    Where a factor's tail is zero its own part of the gradient is taken as zero.

    Source: HETLoRA (arXiv 2401.06432), rank self-pruning.
    """
    for layer in lora.layers.values():
        if layer.a.grad is None or layer.b.grad is None:
            continue
        first = left_of_tail(layer.a.shape[1], share)
        tail_a, tail_b = layer.a[:, first:], layer.b[:, :, first:]
        size_a, size_b = _norms(tail_a), _norms(tail_b)
        pull_a = weight * size_b / size_a.clamp_min(SMALLEST)
        pull_b = weight * size_a / size_b.clamp_min(SMALLEST)
        layer.a.grad[:, first:] += tail_a * pull_a[:, None, None]
        layer.b.grad[:, :, first:] += tail_b * pull_b[:, None, None]


@torch.no_grad()
def tail_norms(lora: LoraNetwork, *, share: float) -> torch.Tensor:
    """Return `sum |B[:, k:]| |A[k:]|` over layers for each device, (devices,)."""
    total = torch.zeros(lora.devices)
    for layer in lora.layers.values():
        first = left_of_tail(layer.a.shape[1], share)
        total += (_norms(layer.a[:, first:]) * _norms(layer.b[:, :, first:])).cpu()
    return total


def _norms(stack: torch.Tensor) -> torch.Tensor:
    return stack.flatten(1).square().sum(1).sqrt()


class PassWatch:
    """What a method wants of a pass beside training: penalties, importance, a rank that shrinks."""

    def __init__(
        self,
        lora: LoraNetwork,
        work: WorkSpec,
        shape: ModelShape,
        kept: Kept,
        known: Sequence[Importance | None],
    ) -> None:
        """Look at the adapters as they begin.

        Args:
            lora: the network of the pass, of n devices.
            work: what the method wants.
            shape: of the unpruned model.
            kept: the slice that trains.
            known: the importance that each device has measured before, (n,).
        """
        self.kept, self.lora, self._work = kept, lora, work
        self._start: list[torch.Tensor] = []
        if work.penalty == "proximal":
            self._start = [parameter.detach().clone() for parameter in lora.parameters()]
        if work.penalty == "tail":
            self._tail = tail_norms(lora, share=work.tail)
        self._tracker: Tracker | None = tracker(work.importance, lora, shape, kept, known)

    def before(self, batch: Batch) -> None:
        """Get ready for a step."""
        if self._tracker is not None:
            self._tracker.before(batch)

    def after(self, loss: torch.Tensor) -> None:
        """Read the gradients of the loss (devices,), then add those of the penalty."""
        if self._tracker is not None:
            self._tracker.after(torch.isfinite(loss))
        if self._work.penalty == "proximal":
            pull_back_(self.lora.parameters(), self._start, weight=self._work.penalty_weight)
        elif self._work.penalty == "tail":
            shrink_tail_(self.lora, weight=self._work.penalty_weight, share=self._work.tail)

    def readings(self) -> Sequence[Reading | None]:
        """Return what each device measured, None where the method measures nothing."""
        if self._tracker is None:
            return [None] * self.lora.devices
        return self._tracker.readings()

    def ranks_left(self, rank: int) -> list[int]:
        """Return the rank of each device from now on; less where the tail has lost weight."""
        if self._work.penalty != "tail":
            return [rank] * self.lora.devices
        lost = (tail_norms(self.lora, share=self._work.tail) < self._tail).tolist()
        return [left_of_tail(rank, self._work.tail) if less else rank for less in lost]
