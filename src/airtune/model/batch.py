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


def collate(
    sequences: Sequences,
    indices: Sequence[int] | Ints,
    *,
    padding: Literal["right"] | int = "right",
    pad_id: int = 0,
    device: str | torch.device = "cpu",
) -> Batch:
    """Pad the chosen examples on the right to the longest, or to `padding` tokens.

    Padded positions carry `pad_id`, attention 0 and the ignored label, so any id may pad.

    Raises:
        DataError: if no example is chosen.
    """
    if len(indices) == 0:
        raise DataError("a batch needs at least one example, got none")
    rows = [sequences.tokens[int(index)] for index in indices]
    length = max(len(row) for row in rows) if padding == "right" else padding
    input_ids = np.full((len(rows), length), pad_id, np.int64)
    mask = np.zeros((len(rows), length), np.int64)
    for place, row in enumerate(rows):
        input_ids[place, : len(row)] = row[:length]
        mask[place, : len(row)] = 1
    if isinstance(sequences.targets, np.ndarray):
        labels = sequences.targets[np.asarray(indices, np.int64)].astype(np.int64)
    else:
        labels = np.full((len(rows), length), IGNORED, np.int64)
        for place, index in enumerate(indices):
            target = sequences.targets[int(index)]
            labels[place, : len(target)] = target[:length]
    arrays = (torch.from_numpy(array).to(device) for array in (input_ids, mask, labels))
    return Batch(*arrays)
