"""Products B A, exact over unlike ranks: refactored by an SVD, or merged into the base.

factored  the mean of the products, refactored by QR and SVD (FlexLoRA, arXiv 2402.11505)
lifted    what each product has changed by, added to the global one and refactored likewise: a
          device of low rank was sent the leading directions alone, and what it never had it does
          not pull down (reconstructed: FedSpine, arXiv 2501.02438, gives the idea of lifting
          updates to a common form, and no formula)
stacked   the exact sum, merged into the base, adapters start afresh (FLoRA, arXiv 2409.05976)

No (out, in) matrix is made but by `stacked`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from airtune.keys import derive_seed
from airtune.model.lora import Adapters, layer_names
from airtune.model.rules.rule import Combined, Factors, Layer, LayerPart, Rule

A_ROW_NORM = 1.0 / math.sqrt(3.0)
"""Norm of a row of a fresh A; refactored rows get the same, so that learning rates keep their
meaning from round to round."""


def _factored(layer: Layer) -> Combined:
    return Combined(_refactored(layer.previous, layer.parts, starts=layer.starts))


def _stacked(layer: Layer) -> Combined:
    b, a = _stack(layer.previous, layer.parts)
    old_a, old_b = layer.previous
    stream = torch.Generator().manual_seed(derive_seed(layer.seed, layer.name, layer.round))
    fresh = torch.empty_like(old_a).uniform_(-1.0, 1.0, generator=stream)
    factors = fresh / math.sqrt(fresh.shape[1]), torch.zeros_like(old_b)
    return Combined(factors, merged=layer.scale * (b @ a).to(old_a.dtype))


def _stack(
    previous: Factors, parts: Sequence[LayerPart], *, starts: Sequence[LayerPart] = ()
) -> Factors:
    """Return stacked factors whose product is the covered mean, B (out, R) and A (R, in).

    The previous factors close the stack: they stand for what no device kept, and where every
    structure is covered they add nothing to the product but directions to a rank it lacks. With
    `starts` they count whole, as what the changes are added to.
    """
    rows, columns = previous[1].shape[0], previous[0].shape[1]
    tall, wide = [], []
    row_cover = torch.zeros(rows, dtype=torch.float64)
    column_cover = torch.zeros(columns, dtype=torch.float64)
    for part in (*parts, *starts):
        b = torch.zeros(rows, part.b.shape[1], dtype=torch.float64)
        a = torch.zeros(part.a.shape[0], columns, dtype=torch.float64)
        row_place = slice(None) if part.rows is None else torch.from_numpy(part.rows)
        column_place = slice(None) if part.columns is None else torch.from_numpy(part.columns)
        b[row_place] = part.weight * part.b.cpu().double()
        a[:, column_place] = part.a.cpu().double()
        row_cover[row_place] += max(part.weight, 0.0)
        column_cover[column_place] += max(part.weight, 0.0)
        tall.append(b)
        wide.append(a)
    # One axis at most is pruned; along the other every device counts, so its cover is 1.
    is_row_pruned = any(part.rows is not None for part in parts)
    is_column_pruned = any(part.columns is not None for part in parts)
    stacked_b, stacked_a = torch.cat(tall, 1), torch.cat(wide, 0)
    old_a, old_b = previous[0].cpu().double(), previous[1].cpu().double()
    if is_row_pruned:
        stacked_b = stacked_b / row_cover.clamp_min(1e-300)[:, None]
        old_b = old_b if starts else old_b * (row_cover == 0)[:, None]
    elif is_column_pruned:
        stacked_a = stacked_a / column_cover.clamp_min(1e-300)
        if not starts:
            return _with_uncovered_columns(stacked_b, stacked_a, (old_a, old_b), column_cover)
    elif not starts:
        old_b = torch.zeros_like(old_b)
    return torch.cat([stacked_b, old_b], 1), torch.cat([stacked_a, old_a], 0)


def _with_uncovered_columns(
    stacked_b: torch.Tensor, stacked_a: torch.Tensor, previous: Factors, cover: torch.Tensor
) -> Factors:
    """Close a stack whose columns are pruned: the previous product where nobody kept a column."""
    old_a, old_b = previous
    lost = cover == 0
    closing_a = torch.cat([old_a * lost, old_a], 0)
    closing_b = torch.cat([old_b, torch.zeros_like(old_b)], 1)
    return torch.cat([stacked_b, closing_b], 1), torch.cat([stacked_a, closing_a], 0)


def _refactored(
    previous: Factors, parts: Sequence[LayerPart], *, starts: Sequence[LayerPart] = ()
) -> Factors:
    """Return the best factors of the global rank, B A closest to the covered mean.

    With `starts`, closest to the previous product and the covered mean of the parts' changes.

    B_s = Q_b R_b and A_s' = Q_a R_a; the SVD of the small core R_b R_a' = U S V' gives
    B = Q_b U S / c and A = c V' Q_a', c the row norm of a fresh A. A keeps full rank where the
    product has less, so no direction dies; of ranks above what a layer can have, zeros are left.
    """
    rank = previous[0].shape[0]
    stacked_b, stacked_a = _stack(previous, parts, starts=starts)
    left, left_core = torch.linalg.qr(stacked_b)
    right, right_core = torch.linalg.qr(stacked_a.T)
    u, values, v = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    b = left @ (u[:, :rank] * (values[:rank] / A_ROW_NORM))
    a = A_ROW_NORM * (v[:rank] @ right.T)
    missing = rank - a.shape[0]
    a, b = functional.pad(a, (0, 0, 0, missing)), functional.pad(b, (0, missing))
    dtype = previous[0].dtype
    return a.to(dtype).contiguous(), b.to(dtype).contiguous()


def mixed_products(old: Adapters, new: Adapters, *, share: float) -> Adapters:
    """Return factors, of the same rank, of the mean of two sets of products.

    Args:
        old: on the full grid.
        new: the same layers.
        share: weight of `new`, in [0, 1].
    """
    mixed: Adapters = {}
    for name in layer_names(new):
        a, b = f"{name}.A", f"{name}.B"
        parts = [
            LayerPart(old[a], old[b], None, None, 1.0 - share),
            LayerPart(new[a], new[b], None, None, share),
        ]
        mixed[a], mixed[b] = _refactored((new[a], new[b]), parts)
    return mixed


FACTORED = Rule(_factored, keeps_axes=False)
LIFTED = Rule(_factored, keeps_axes=False, needs_sent=True)
STACKED = Rule(_stacked, keeps_axes=False)
