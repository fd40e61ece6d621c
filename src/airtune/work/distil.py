"""A smaller model learns to answer as the dense one does, before anything is tuned."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from airtune.errors import TrainingError
from airtune.keys import generator
from airtune.model.batch import IGNORED, Batch, Sequences, collate
from airtune.model.loss import Teacher, scored, token_losses
from airtune.work.batches import draw_batches

ROWS = 8
"""Texts of a step."""
LEARNING_RATE = 2e-4
_WARMUP = 10
_CLIP = 1.0
_CHUNK = 512
"""Positions whose logits exist at a time."""


def distil_(
    student: PreTrainedModel,
    teacher: nn.Module,
    texts: Sequences,
    *,
    steps: int,
    batch: int = ROWS,
    seed: int = 0,
    on_step: Callable[[int, float], None] = lambda step, divergence: None,
) -> None:
    """Train all weights of a slice, but the embeddings and the output layer, towards its teacher.

        loss = KL(teacher || student), averaged over all tokens of a text; labels are not read

    AdamW with a learning rate of 2e-4 that falls along a cosine.

    Source: distillation of a pruned language model from the dense one (Minitron, arXiv 2407.14679);
    reconstructed.

    Args:
        student: the slice, in float32; its tensors must be its own. Changed in place.
        teacher: the dense model, which has the same output layer.
        texts: what both read; each is used once before any is used again.
        steps: of `ROWS` texts each.
        batch: texts in one pass; gradients add up to those of a step.
        seed: of the order of texts.
        on_step: told how many steps are done, and the divergence in nats a token.

    Raises:
        DataError: if there is no text.
        TrainingError: if the divergence is not finite.
    """
    learnt = _learnt(student)
    optimizer = torch.optim.AdamW(learnt, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(_WARMUP, steps), steps)
    drawn = draw_batches(len(texts), steps=steps, batch=ROWS, stream=generator(seed, "distil"))
    device = next(student.parameters()).device
    for step, rows in enumerate(drawn, 1):
        by_length = sorted(rows, key=lambda row: len(texts.tokens[row]))  # which pads least
        parts = np.array_split(by_length, -(-ROWS // batch))
        batches = [_everywhere(collate(texts, part, device=device)) for part in parts]
        divergence = _gradients_(student, teacher, batches)
        if not math.isfinite(divergence):
            raise TrainingError(
                f"the divergence from the dense model was {divergence} in step {step} of {steps}; "
                "distil for fewer steps, or for none"
            )
        torch.nn.utils.clip_grad_norm_(learnt, _CLIP)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        on_step(step, divergence)
    student.requires_grad_(requires_grad=False)


def _learnt(student: PreTrainedModel) -> list[nn.Parameter]:
    """Let a slice's blocks and its last norm learn; return their parameters."""
    frozen = {id(one) for one in student.get_input_embeddings().parameters()}
    frozen |= {id(one) for one in student.get_output_embeddings().parameters()}
    learnt = [one for one in student.parameters() if id(one) not in frozen]
    student.requires_grad_(requires_grad=False)
    for one in learnt:
        one.requires_grad_()
    return learnt


def _everywhere(batch: Batch) -> Batch:
    """Return a batch of which every real token is scored."""
    return replace(batch, labels=batch.input_ids.masked_fill(batch.attention_mask == 0, IGNORED))


def _gradients_(student: PreTrainedModel, teacher: nn.Module, batches: list[Batch]) -> float:
    """Add up the gradients of a step; return its divergence in nats a token."""
    count = sum(int(scored(batch).sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        losses = token_losses(student, batch, chunk=_CHUNK, teacher=Teacher(teacher, share=1.0))
        loss = losses.sum() / count
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total
