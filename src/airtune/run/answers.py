"""Answers of an exported model to a few test rows, as its card shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from airtune.data.samples import TextRows
from airtune.model.base import BaseModel
from airtune.model.classes import class_names
from airtune.model.generate import write_greedily

SHOWN = 5
MOST_TOKENS = 64
"""Of an answer that is generated."""


@dataclass(frozen=True, slots=True)
class GradedAnswer:
    """A question, what the model says, and what is right."""

    prompt: str
    said: str
    right: str
    pair: str = ""
    """The second text of a pair."""


def sample_answers(
    saved: nn.Module, folder: Path, base: BaseModel, samples: TextRows, *, max_length: int
) -> tuple[GradedAnswer, ...]:
    """Ask a saved model test rows, evenly over those that were kept.

    Args:
        saved: loaded from `folder`.
        folder: the folder; its tokenizer is used.
        base: what it was tuned from.
        samples: test rows; of images there are none.
        max_length: tokens at which the run cuts a text.
    """
    if not samples:
        return ()
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    count = min(SHOWN, len(samples))
    rows = [samples.take([index * len(samples) // count]) for index in range(count)]
    if not base.shape.labels:
        return tuple(_written(saved, tokenizer, row, max_length) for row in rows)
    names = class_names(base.network.config)
    return tuple(_classified(saved, tokenizer, row, max_length, names) for row in rows)


@torch.no_grad()
def _classified(
    saved: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    row: TextRows,
    max_length: int,
    names: Sequence[str],
) -> GradedAnswer:
    inputs = tokenizer(
        row.texts[0],
        row.pairs[0] if row.pairs else None,
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
    )
    scores = saved(**inputs).logits[0].float().softmax(0)
    said = int(scores.argmax())
    return GradedAnswer(
        row.texts[0],
        f"{names[said]} ({float(scores[said]):.2f})",
        names[row.classes[0]],
        row.pairs[0] if row.pairs else "",
    )


def _written(
    saved: nn.Module, tokenizer: PreTrainedTokenizerBase, row: TextRows, max_length: int
) -> GradedAnswer:
    text = row.texts[0]
    prompt, right = text[: (start := _start(row))], text[start:]
    inputs = tokenizer(
        prompt,
        add_special_tokens=row.special,
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
    )
    used = inputs["input_ids"].shape[1]
    room = int(getattr(saved.config, "max_position_embeddings", 0) or used + MOST_TOKENS) - used
    if room < 1 or not used:
        return GradedAnswer(prompt, "", right)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    written = write_greedily(
        saved,
        inputs["input_ids"],
        tokens=min(MOST_TOKENS, room),
        ends=tokenizer.eos_token_id,
        pad=pad,
    )
    said = tokenizer.decode(written[0].tolist(), skip_special_tokens=True)
    return GradedAnswer(prompt, str(said), right)


def _start(row: TextRows) -> int:
    """Return where the answer begins; of a plain text, after its first third."""
    if row.starts[0]:
        return row.starts[0]
    text = row.texts[0]
    blank = text.find(" ", len(text) // 3)
    return blank if blank > 0 else len(text)
