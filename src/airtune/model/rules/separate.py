"""A and B apart: by the devices' data, by rank too, or by the norm of the product.

average        FedIT (arXiv 2305.05644); unlike ranks are padded with zeros
nested         each number over the devices that trained it: a rank is the first rows of A and
               columns of B of one common set
norm-weighted  the average with weights |B_i A_i|_F (HETLoRA, arXiv 2401.06432)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from airtune.model.lora import layer_names
from airtune.model.rules.rule import Combined, Layer, Rule
from airtune.model.state import Update
from airtune.plan import Floats, Ints

_Pieces = Sequence[tuple[torch.Tensor, Ints | None, float]]


def _apart(mean: Callable[[torch.Tensor, _Pieces], torch.Tensor]) -> Callable[[Layer], Combined]:
    """Return a rule's `combine` that takes one mean of A and one of B, which is transposed for it."""

    def combine(layer: Layer) -> Combined:
        old_a, old_b = layer.previous
        a = mean(old_a, [(part.a, part.columns, part.weight) for part in layer.parts])
        b = mean(old_b.T, [(part.b.T, part.rows, part.weight) for part in layer.parts])
        return Combined((a, b.T.contiguous()))

    return combine


def _mean(previous: torch.Tensor, pieces: _Pieces) -> torch.Tensor:
    """Return the mean of (rank_i, kept_i) pieces on the (rank, size) grid, column by column.

    Smaller ranks count as zeros up to the largest of the round. What is beyond it nobody trained:
    it stays, as factors that are both zero would never learn again.
    """
    total = torch.zeros(previous.shape, dtype=torch.float64)
    cover = torch.zeros(previous.shape[1], dtype=torch.float64)
    for piece, index, weight in pieces:
        where = slice(None) if index is None else torch.from_numpy(index)
        total[: piece.shape[0], where] += weight * piece.cpu().double()
        cover[where] += weight
    mean = total / cover.clamp_min(torch.finfo(torch.float64).tiny)
    largest = max(piece.shape[0] for piece, _, _ in pieces)
    is_trained = (cover > 0) & (torch.arange(previous.shape[0]) < largest)[:, None]
    return torch.where(is_trained, mean.to(previous.dtype), previous.cpu())


def _nested_mean(previous: torch.Tensor, pieces: _Pieces) -> torch.Tensor:
    """Return the mean of (rank_i, kept_i) pieces, each number over those who trained it."""
    total = torch.zeros(previous.shape, dtype=torch.float64)
    cover = torch.zeros(previous.shape, dtype=torch.float64)
    for piece, index, weight in pieces:
        where = slice(piece.shape[0]), slice(None) if index is None else torch.from_numpy(index)
        total[where] += weight * piece.cpu().double()
        cover[where] += weight
    mean = total / cover.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(cover > 0, mean.to(previous.dtype), previous.cpu())


def _by_norm(updates: Sequence[Update], data_weights: Floats) -> Floats:
    """Return HETLoRA's weights; the data's where every product is still zero."""
    squares = np.zeros(len(updates))
    for index, update in enumerate(updates):
        for name in layer_names(update.adapters):
            a, b = update.adapters[f"{name}.A"].double(), update.adapters[f"{name}.B"].double()
            # |B A|_F^2 = <B'B, AA'>, which needs no (out, in) matrix.
            squares[index] += max(float(((b.T @ b) * (a @ a.T)).sum()), 0.0)
    norms = np.sqrt(squares)
    return np.asarray(norms / norms.sum()) if norms.sum() > 0 else data_weights


AVERAGE = Rule(_apart(_mean))
NESTED = Rule(_apart(_nested_mean))
NORM_WEIGHTED = Rule(_apart(_mean), weigh=_by_norm)
