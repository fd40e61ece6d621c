"""Training losses, one a device, that never hold the logits of a whole batch.

The loss of a language model is computed for a chunk of scored positions at a time, and the
gradient with respect to the hidden states at once with it, because the output layer is frozen:
logits of `chunk` positions exist at any time and are not computed again in the backward pass.
Positions that are not scored (prompts, padding) never meet the output layer. The values are those
of transformers' own losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from airtune.model.batch import IGNORED, Batch
from airtune.model.families import family_of


class AutogradContext(Protocol):
    """What torch hands to an autograd function."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[torch.Tensor, ...]

    def save_for_backward(self, *tensors: torch.Tensor) -> None:
        """Keep tensors for `backward`."""


@dataclass(frozen=True, slots=True)
class _Lesson:
    """What scored positions are to learn."""

    targets: torch.Tensor
    """(positions,)."""
    chunk: int
    """Positions whose logits exist at a time."""
    taught: torch.Tensor | None
    """A teacher's hidden states, (positions, width)."""
    share: float
    """Of the loss that is the divergence from the teacher."""


class _CrossEntropy(torch.autograd.Function):
    """Cross entropy of a frozen output layer, in chunks."""

    @staticmethod
    def forward(
        ctx: AutogradContext, hidden: torch.Tensor, weight: torch.Tensor, lesson: _Lesson
    ) -> torch.Tensor:
        """Return the losses (positions,) of hidden (positions, width), weight (vocab, width)."""
        targets, chunk, share = lesson.targets, lesson.chunk, lesson.share
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needs_gradient else None
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            logits = (hidden[part] @ weight.T).float()  # (chunk, vocab)
            wanted = targets[part, None]
            scale = logits.logsumexp(1, keepdim=True)
            losses[part] = (scale - logits.gather(1, wanted)).squeeze(1)
            teacher = None
            if lesson.taught is not None:
                log_teacher = (lesson.taught[part] @ weight.T).float().log_softmax(1)
                teacher = log_teacher.exp()
                distance = torch.linalg.vecdot(teacher, log_teacher.sub_(logits).add_(scale))
                losses[part] = losses[part] * (1.0 - share) + share * distance
            if gradient is not None:
                logits.sub_(scale).exp_()
                logits.scatter_add_(1, wanted, torch.full_like(scale, share - 1.0))
                if teacher is not None:
                    logits.sub_(teacher, alpha=share)
                gradient[part] = logits.to(weight.dtype) @ weight
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: AutogradContext, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the stored gradient of every position."""
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype)[:, None], None, None


@dataclass(frozen=True, slots=True)
class Teacher:
    """A model that shares the output layer, and how much it counts.

        loss = (1 - share) CE(labels) + share KL(teacher || student)

    Source: distillation of a pruned model from the dense one (CoFi, arXiv 2204.00408), without a
    temperature; reconstructed.
    """

    network: nn.Module
    share: float


def token_losses(
    network: nn.Module, batch: Batch, *, chunk: int = 0, teacher: Teacher | None = None
) -> torch.Tensor:
    """Return a language model's loss at every position, zero where nothing is scored.

    Position t holds the loss of predicting token t + 1, as in transformers.

    Args:
        network: A causal language model, or the `network` of a `LoraNetwork`.
        batch: input_ids, mask and labels (batch, tokens), labels not shifted.
        chunk: Positions whose logits exist at a time; 0 = all.
        teacher: Whom it learns from beside the labels.

    Returns:
        Losses in nats, (batch, tokens - 1); `scored(batch)` says which count.
    """
    hidden = _hidden(network, batch)[:, :-1]  # (batch, tokens - 1, width)
    where = scored(batch)
    targets = batch.labels[:, 1:][where]
    rows = hidden[where]
    weight = network.get_submodule("lm_head").get_parameter("weight")
    taught, share = None, 0.0
    if teacher is not None:
        with torch.no_grad():
            taught, share = _hidden(teacher.network, batch)[:, :-1][where], teacher.share
    lesson = _Lesson(targets, chunk or max(len(targets), 1), taught, share)
    losses = _CrossEntropy.apply(rows, weight, lesson)  # type: ignore[no-untyped-call]
    return torch.zeros(where.shape, device=hidden.device).masked_scatter(where, losses)


def scored(batch: Batch) -> torch.Tensor:
    """Return where `token_losses` counts, (batch, tokens - 1)."""
    return batch.labels[:, 1:] != IGNORED


def class_logits(network: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the scores of every class, (batch, labels).

    A decoder's score is read at the last real token, which the mask tells, so that no pad token
    is needed; batches are padded on the right.
    """
    family = family_of(network.config)
    if not family.causal:
        output = network(**batch.inputs)
        return torch.as_tensor(output.logits)
    last = batch.attention_mask.sum(1) - 1
    hidden = _hidden(network, batch)
    rows = hidden[torch.arange(len(last), device=last.device), last]  # (batch, width)
    return torch.as_tensor(network.get_submodule(family.head)(rows))


def batch_losses(
    network: nn.Module,
    batch: Batch,
    *,
    devices: int = 1,
    chunk: int = 0,
    teacher: Teacher | None = None,
) -> torch.Tensor:
    """Return the mean loss of each device, (devices,); sum them before `backward`.

    The labels tell the task: (batch, tokens) is a language model, (batch,) classification. A
    device none of whose positions is scored has loss NaN.

    Args:
        network: A Hugging Face network, or the `network` of a `LoraNetwork`.
        batch: Devices one after the other, the same number of rows each.
        devices: How many.
        chunk: Positions whose logits exist at a time; 0 = all.
        teacher: Whom a language model learns from beside the labels.
    """
    if batch.labels.dim() == 1:
        logits = class_logits(network, batch).float()
        losses = nn.functional.cross_entropy(logits, batch.labels, reduction="none")
        return losses.reshape(devices, -1).mean(1)
    losses = token_losses(network, batch, chunk=chunk, teacher=teacher).reshape(devices, -1).sum(1)
    return losses / scored(batch).reshape(devices, -1).sum(1)


def _hidden(network: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the last hidden states, (batch, tokens, width)."""
    backbone = network.get_submodule(family_of(network.config).backbone)
    output = backbone(**batch.inputs, use_cache=False)
    return torch.as_tensor(output.last_hidden_state)


def device_losses(
    network: nn.Module, batch: Batch, rows: Sequence[int], *, chunk: int = 0
) -> torch.Tensor:
    """Return the mean loss of each device, (devices,), NaN where nothing is scored.

    Args:
        network: As for `batch_losses`.
        batch: Devices one after the other.
        rows: How many rows each has.
        chunk: Positions whose logits exist at a time; 0 = all.
    """
    if batch.labels.dim() == 1:
        logits = class_logits(network, batch).float()
        losses = nn.functional.cross_entropy(logits, batch.labels, reduction="none")
        return torch.stack([part.mean() for part in losses.split_with_sizes(list(rows))])
    sums = token_losses(network, batch, chunk=chunk).sum(1)
    counts = scored(batch).sum(1)
    parts = zip(*(item.split_with_sizes(list(rows)) for item in (sums, counts)), strict=True)
    return torch.stack([part.sum() / count.sum() for part, count in parts])


def scored_devices(batch: Batch, rows: Sequence[int]) -> torch.Tensor:
    """Return which devices have something to learn from, (devices,)."""
    if batch.labels.dim() == 1:
        return torch.ones(len(rows), dtype=torch.bool, device=batch.labels.device)
    return torch.stack([part.any() for part in scored(batch).split_with_sizes(list(rows))])
