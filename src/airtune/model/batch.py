"""Tokenised examples and how they become a padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from airtune.errors import DataError
from airtune.plan import Ints

IGNORED = -100
"""Label of a position that is not scored."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """Tokenised examples of one device or one test set.

    `targets` holds, for a language model, one label per token (IGNORED where not scored) and,
    for classification, one class per example.
    """

    tokens: tuple[Ints, ...]
    targets: tuple[Ints, ...] | Ints
    truncated: int = 0
    """How many texts were longer than the limit and were cut."""
    segments: tuple[Ints, ...] = ()
    """Segment ids (`token_type_ids`) of every example, where the tokenizer gives any; else ()."""

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Batch:
    """A padded batch on a torch device."""

    input_ids: torch.Tensor
    """(batch, tokens), int64."""
    attention_mask: torch.Tensor
    """(batch, tokens), 1 where a token is real."""
    labels: torch.Tensor
    """(batch, tokens) for a language model, not shifted; (batch,) for classification."""
    token_type_ids: torch.Tensor | None = None
    """(batch, tokens), which text of a pair a token belongs to; None = the model is not told."""

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """What a network reads, by transformers' names."""
        told = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        if self.token_type_ids is not None:
            told["token_type_ids"] = self.token_type_ids
        return told


def collate(
    sequences: Sequences,
    indices: Sequence[int] | Ints,
    *,
    padding: Literal["right"] | int = "right",
    device: str | torch.device = "cpu",
) -> Batch:
    """Pad the chosen examples on the right to the longest, or to `padding` tokens.

    Padded positions carry token 0, attention 0 and the ignored label, so any id may pad.

    Raises:
        DataError: if no example is chosen.
    """
    if len(indices) == 0:
        raise DataError("a batch needs at least one example, got none")
    rows = [sequences.tokens[int(index)] for index in indices]
    length = max(len(row) for row in rows) if padding == "right" else padding
    input_ids = _padded(rows, length, 0)
    mask = _padded([np.ones(len(row), np.int64) for row in rows], length, 0)
    if isinstance(sequences.targets, np.ndarray):
        labels = sequences.targets[np.asarray(indices, np.int64)].astype(np.int64)
    else:
        targets = [sequences.targets[int(index)] for index in indices]
        labels = _padded(targets, length, IGNORED)
    arrays = [input_ids, mask, labels]
    if sequences.segments:
        arrays.append(_padded([sequences.segments[int(index)] for index in indices], length, 0))
    return Batch(*(torch.from_numpy(array).to(device) for array in arrays))


def _padded(rows: Sequence[Ints], length: int, fill: int) -> Ints:
    """Return rows cut or filled on the right to one length, (rows, length)."""
    whole = np.full((len(rows), length), fill, np.int64)
    for index, row in enumerate(rows):
        whole[index, : len(row)] = row[:length]
    return whole
