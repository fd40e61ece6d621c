"""Running a saved model with plain tools, and comparing its answers with the tuned model's.

The rows are test rows of the run, given as texts to the tokenizer that was saved, each alone and all
in a batch. What rounding explains is not guessed: where the answers are not plainly equal, both
models are asked again in float64, and the saved one may be off by a small multiple of what the run's
own precision does to the tuned one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from airtune.data.samples import TextRows
from airtune.errors import ModelError
from airtune.keys import derive_seed
from airtune.model.base import BaseModel
from airtune.model.batch import IGNORED, Batch, collate
from airtune.model.classes import class_names
from airtune.model.images import image_tokens
from airtune.model.loss import class_logits
from airtune.model.saved import apart

ROWS, TOKENS = 4, 96
"""Of a language model, whose logits are many; a classifier is asked all rows, whole."""
CLEAR_RMS, CLEAR_Q99 = 1e-5, 1e-4
"""Differences of logits, relative to their spread, that need no second look."""
ROUNDING = 3.0
"""How many times the tuned model's own rounding the saved one may be off."""

Inputs = Mapping[str, torch.Tensor]
Answers = list[torch.Tensor]
"""Logits of each row: (labels,), or (tokens, vocabulary)."""


@dataclass(frozen=True, slots=True)
class Replay:
    """A saved model's answers beside those of the tuned model in memory."""

    rows: int
    """Test rows that were asked, alone and in a batch; 0 = random tokens or images instead."""
    batched: bool
    """False for a language model without a pad token."""
    logit_rms: float
    """Root mean square of the difference, relative to the spread of the logits."""
    logit_q99: float
    """Its 99 % quantile, likewise."""
    precision: str
    """In which the two were compared."""
    loss: float | None
    """Of the tuned model on these rows, as the run evaluates; None where nothing is scored."""
    saved_loss: float | None
    """Of the saved model, as its own tokenizer feeds it."""


@dataclass(frozen=True, slots=True)
class _Questions:
    """The same rows as the run reads them and as a plain program would."""

    own: tuple[Batch, ...]
    alone: tuple[Inputs, ...]
    together: Inputs | None


def replay(
    saved: nn.Module,
    folder: Path,
    tuned: nn.Module,
    base: BaseModel,
    samples: TextRows,
    *,
    max_length: int,
) -> Replay:
    """Compare a saved model with the one in memory.

    Args:
        saved: loaded plainly from `folder`.
        folder: the folder; its tokenizer is used.
        tuned: the model that the run evaluated.
        base: what it was tuned from.
        samples: test rows; none = random tokens or images.
        max_length: tokens at which the run cuts a text.

    Raises:
        ModelError: if the saved model names other classes, reads the texts otherwise, or answers
            otherwise than rounding explains.
    """
    _check_classes(saved, base)
    asked = _questions(folder, base, samples, max_length)
    is_classifier = base.shape.labels > 0
    here = _own(tuned, asked.own, is_classifier=is_classifier)
    alone, together = _plain(saved, asked)
    rms, q99 = _worst(here, alone, together)
    precision = str(next(saved.parameters()).dtype).removeprefix("torch.")
    if not (rms <= CLEAR_RMS and q99 <= CLEAR_Q99):
        rms, q99 = _exact(tuned, saved, asked, here, is_classifier=is_classifier)
        precision = "float64"
    return Replay(
        len(asked.own) if samples else 0,
        asked.together is not None,
        rms,
        q99,
        precision,
        _loss(here, asked.own),
        _loss(alone, asked.own),
    )


def _exact(
    tuned: nn.Module, saved: nn.Module, asked: _Questions, here: Answers, *, is_classifier: bool
) -> tuple[float, float]:
    """Return how far apart the two are in float64; raises ModelError where rounding is less."""
    exact = _own(copy.deepcopy(tuned).double(), asked.own, is_classifier=is_classifier)
    alone, together = _plain(copy.deepcopy(saved).double(), asked)
    noise_rms, noise_q99 = apart(exact, here)
    allowed = max(ROUNDING * noise_rms, CLEAR_RMS), max(ROUNDING * noise_q99, CLEAR_Q99)
    for how, there in (("asked one by one", alone), ("asked in a batch", together)):
        rms, q99 = (0.0, 0.0) if there is None else apart(exact, there)
        if not (rms <= allowed[0] and q99 <= allowed[1]):
            raise ModelError(
                "the model as saved answers differently from the one that was tuned, so it was "
                f"not kept: {how}, its logits are off by {rms:.2g} of their spread (root mean "
                f"square; 99 % within {q99:.2g}), rounding explains {allowed[0]:.2g} "
                f"({allowed[1]:.2g}); this is a fault of airtune: report it, with the base's name "
                "and the recipe"
            )
    return _worst(exact, alone, together)


def _check_classes(saved: nn.Module, base: BaseModel) -> None:
    if not base.shape.labels:
        return
    wanted, found = class_names(base.network.config), class_names(saved.config)
    if wanted != found:
        raise ModelError(
            f"the model as saved names its classes {', '.join(found)}, tuned were "
            f"{', '.join(wanted)}; this is a fault of airtune: report it"
        )


def _questions(folder: Path, base: BaseModel, samples: TextRows, max_length: int) -> _Questions:
    if base.frame is not None or base.tokenizer is None or not samples:
        return _random(base)
    is_classifier = base.shape.labels > 0
    if not is_classifier:
        samples, max_length = samples.take(range(min(ROWS, len(samples)))), min(max_length, TOKENS)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    examples = samples.tokenised(base.tokenizer, max_length=max_length).sequences(
        np.arange(len(samples))
    )
    rows = [_read(tokenizer, samples.take([row]), max_length) for row in range(len(samples))]
    own = [collate(examples, [row]) for row in range(len(samples))]
    for row, (batch, inputs) in enumerate(zip(own, rows, strict=True)):
        if not torch.equal(inputs["input_ids"][0], batch.input_ids[0]):
            raise ModelError(
                f"the tokenizer as saved reads {samples.texts[row][:60]!r} otherwise than the one "
                "that the run used, so the export was not kept; this is a fault of airtune: report it"
            )
    if tokenizer.pad_token is None and is_classifier:
        raise ModelError(
            "the tokenizer has no pad token, so plain tools cannot ask a classifier several texts "
            "at once; give the base's tokenizer one, and its config a pad_token_id"
        )
    together = None if tokenizer.pad_token is None else _read(tokenizer, samples, max_length)
    return _Questions(tuple(own), tuple(rows), together)


def _read(tokenizer: PreTrainedTokenizerBase, rows: TextRows, max_length: int) -> Inputs:
    """Return texts as a plain program hands them to a model.

    Of a language model's text, what a caller sends is read by itself, and so is the answer to it.
    """
    read: Inputs
    if rows.classes:
        read = tokenizer(
            list(rows.texts),
            list(rows.pairs) or None,
            truncation=True,
            max_length=max_length,
            padding=len(rows) > 1,
            return_tensors="pt",
        ).data
        return read
    tokens = rows.tokenised(tokenizer, max_length=max_length).tokens
    ids = {"input_ids": [row.tolist() for row in tokens]}
    read = tokenizer.pad(ids, padding=len(rows) > 1, return_tensors="pt").data
    if len(rows) == 1 or tokenizer.padding_side == "right":
        return read
    # as `generate` counts positions from the first real token of a text that is padded on the left
    positions = (read["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return {**read, "position_ids": positions}


def _random(base: BaseModel) -> _Questions:
    """Return random tokens, or random images where the model reads those."""
    stream = torch.Generator().manual_seed(derive_seed(0, "self-check"))
    config = base.network.config
    if base.frame is not None:
        pixels = torch.randn(
            (ROWS, base.frame.channels, base.frame.size, base.frame.size), generator=stream
        )
        mask = torch.ones((ROWS, image_tokens(config)), dtype=torch.int64)
        own = [Batch(pixels[[row]], mask[[row]], torch.zeros(1)) for row in range(ROWS)]
        alone = [{"pixel_values": pixels[[row]]} for row in range(ROWS)]
        return _Questions(tuple(own), tuple(alone), {"pixel_values": pixels})
    limit = int(getattr(config, "max_position_embeddings", TOKENS))
    size = (ROWS, min(TOKENS, limit // 2))
    ids = torch.randint(3, base.shape.vocab, size, generator=stream)
    ones = torch.ones_like(ids)
    labels = torch.zeros(1) if base.shape.labels else torch.full((1, size[1]), IGNORED)
    own = [Batch(ids[[row]], ones[[row]], labels) for row in range(ROWS)]
    alone = [{"input_ids": ids[[row]], "attention_mask": ones[[row]]} for row in range(ROWS)]
    return _Questions(tuple(own), tuple(alone), None)


@torch.no_grad()
def _own(tuned: nn.Module, batches: Sequence[Batch], *, is_classifier: bool) -> Answers:
    """Return the tuned model's answers, as the run evaluates it."""
    dtype = next(tuned.parameters()).dtype
    answers = []
    for batch in batches:
        if batch.input_ids.is_floating_point():
            batch = replace(batch, input_ids=batch.input_ids.to(dtype))
        logits = class_logits(tuned, batch) if is_classifier else tuned(**batch.inputs).logits
        answers.append(logits[0].double())
    return answers


def _plain(saved: nn.Module, asked: _Questions) -> tuple[Answers, Answers | None]:
    """Return the saved model's answers to each row alone, and in a batch."""
    alone = [answer for inputs in asked.alone for answer in _answers(saved, inputs)]
    return alone, None if asked.together is None else _answers(saved, asked.together)


@torch.no_grad()
def _answers(saved: nn.Module, inputs: Inputs) -> Answers:
    dtype = next(saved.parameters()).dtype
    fed = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in inputs.items()
    }
    logits = saved(**fed).logits.double()
    if logits.dim() == 2:
        return list(logits)
    pairs = zip(logits, inputs["attention_mask"].bool(), strict=True)
    return [row[is_real] for row, is_real in pairs]


def _worst(here: Answers, alone: Answers, together: Answers | None) -> tuple[float, float]:
    found = [apart(here, there) for there in (alone, together) if there is not None]
    return max(rms for rms, _ in found), max(q99 for _, q99 in found)


def _loss(answers: Answers, batches: Sequence[Batch]) -> float | None:
    """Return the mean loss in nats, of each row's class or of each scored token."""
    losses = []
    for logits, batch in zip(answers, batches, strict=True):
        if logits.dim() == 1:
            losses.append(
                nn.functional.cross_entropy(logits[None], batch.labels.long()[:1], reduction="none")
            )
            continue
        targets = batch.labels[0, 1:]
        scored = targets != IGNORED
        losses.append(
            nn.functional.cross_entropy(logits[:-1][scored], targets[scored], reduction="none")
        )
    values = torch.cat(losses)
    return float(values.mean()) if len(values) else None
