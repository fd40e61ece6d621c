"""From the devices' updates to the next global adapters, for unlike slices and ranks.

With P_i the slice of device i, w_i its weight and dW_i = B_i A_i, only one side of a linear layer
is ever pruned, so a row (or column) is averaged over the devices that kept it:

    row j of dW = sum_i w_i [i keeps j] (B_i A_i)_j / sum_i w_i [i keeps j]

which is a diagonal scaling of stacked factors; no (out, in) matrix is made. What no device kept
stays as it was: a structure is never lost while it may come back.

average      A and B separately (FedIT, arXiv 2305.05644); unlike ranks are padded with zeros
nested       A and B separately, each number over the devices that trained it: a rank is the first
             rows of A and columns of B of one common set
norm-weighted  the same with weights |B_i A_i|_F (HETLoRA, arXiv 2401.06432)
factored     the products, refactored by QR and SVD (FlexLoRA, arXiv 2402.11505)
lifted       what each product has changed by, added to the global one and refactored likewise: a
             device of low rank was sent the leading directions alone, and what it never had it
             does not pull down (reconstructed: FedSpine, arXiv 2501.02438, gives the idea of
             lifting updates to a common form, and no formula)
stacked      the exact sum, merged into the base, adapters start afresh (FLoRA, arXiv 2409.05976)
trimmed-mean, krum  see `model.protect`, as are clipping and noise

Coverage over unlike slices is ours; the papers have none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.nn import functional

from airtune.errors import ModelError, TrainingError
from airtune.keys import derive_seed
from airtune.model.cumulative import global_kept, pooled_scores, remembered
from airtune.model.importance import Importance, pool
from airtune.model.kept import Kept, keep_all, linear_index
from airtune.model.lora import Adapters, Head, layer_names, take
from airtune.model.protect import add_noise, check_alike, clip_update, krum, trimmed_mean
from airtune.model.state import GlobalState, Update
from airtune.model.update import check_update
from airtune.plan import AggregateSpec, Floats, Ints, Linear, ModelShape
from airtune.plan.method import AggregateRule

TURNS_AXES: frozenset[AggregateRule] = frozenset({"factored", "lifted", "stacked"})
"""Rules after which a direction of the adapters is not the one it was in the round before."""

A_ROW_NORM = 1.0 / math.sqrt(3.0)
"""Norm of a row of a fresh A; refactored rows get the same, so that learning rates keep their
meaning from round to round."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One device's share of one layer."""

    a: torch.Tensor
    b: torch.Tensor
    columns: Ints | None
    rows: Ints | None
    weight: float


def aggregate(
    spec: AggregateSpec,
    state: GlobalState,
    updates: Sequence[Update],
    weights: ArrayLike,
    *,
    shape: ModelShape,
    scale: float = 1.0,
    seed: int = 0,
    planned: Kept | None = None,
) -> GlobalState:
    """Return the state after a round.

    Args:
        spec: Which rule.
        state: The state the devices started from.
        updates: What came back in time, at least one.
        weights: One a device, positive; only their ratios count.
        shape: The unpruned model.
        scale: alpha / rank; used by the stacked rule, which merges.
        seed: Of the run; used by the stacked rule, which draws fresh adapters.
        planned: What the model keeps after the round, where the plan says it (`as_planned`).

    Raises:
        TrainingError: if there is no update.
        ModelError: if an update or the weights are malformed; the message names the device.
    """
    if not updates:
        raise TrainingError("no device returned a usable update, so the round changed nothing")
    data_weights = _weights(weights, len(updates))
    for update in updates:
        check_update(update, state, shape)
    updates, data_weights = _protected(spec, state, updates, data_weights, shape)
    if spec.rule == "trimmed-mean":
        middle, head = trimmed_mean(updates, spec.trim)
        return replace(state, round=state.round + 1, adapters=dict(middle), head=dict(head))
    used = _norm_weights(updates, data_weights) if spec.rule == "norm-weighted" else data_weights
    adapters, merged = _layers(spec, state, updates, used, shape=shape, scale=scale, seed=seed)
    after = replace(
        state,
        round=state.round + 1,
        adapters=adapters,
        head=_head(state.head, updates, data_weights),
        importance=_importance(state, updates, data_weights),
        merged=merged,
    )
    if spec.noise:
        return _noised(spec, state, after, len(updates))
    if not spec.shrinks:
        return after
    return _shrunk(spec, state, after, updates, data_weights, shape, planned)


def _layers(
    spec: AggregateSpec, state: GlobalState, updates: Sequence[Update], weights: Floats,
    *, shape: ModelShape, scale: float, seed: int,
) -> tuple[Adapters, dict[str, torch.Tensor]]:  # fmt: skip
    """Return the next adapters and what has been merged into the base, layer by layer."""
    linears = {linear.name: linear for linear in shape.linears}
    adapters: Adapters = {}
    merged = dict(state.merged)
    sent = [
        replace(one, adapters=take(state.adapters, shape, one.kept, one.rank))
        for one in (updates if spec.rule == "lifted" else ())
    ]
    for name in layer_names(state.adapters):
        linear = linears[name.partition(".")[2]]
        parts = _parts(name, linear, updates, weights, shape)
        previous = state.adapters[f"{name}.A"], state.adapters[f"{name}.B"]
        if spec.rule == "stacked":
            delta = scale * _product(previous, parts)
            merged[name] = merged[name] + delta if name in merged else delta
            stream = torch.Generator().manual_seed(derive_seed(seed, name, state.round + 1))
            fresh = torch.empty_like(previous[0]).uniform_(-1.0, 1.0, generator=stream)
            a, b = fresh / math.sqrt(fresh.shape[1]), torch.zeros_like(previous[1])
        elif spec.rule == "factored":
            a, b = _factored(previous, parts)
        elif spec.rule == "lifted":
            # what each device was sent, to be taken off
            starts = _parts(name, linear, sent, -weights, shape)
            a, b = _factored(previous, parts, starts=starts)
        else:
            a, b = _averaged(previous, parts, nested=spec.rule == "nested")
        adapters[f"{name}.A"], adapters[f"{name}.B"] = a, b
    return adapters, merged


def _protected(
    spec: AggregateSpec,
    state: GlobalState,
    updates: Sequence[Update],
    weights: Floats,
    shape: ModelShape,
) -> tuple[Sequence[Update], Floats]:
    """Return the updates that count, clipped, and their weights."""
    if spec.rule in ("trimmed-mean", "krum") or spec.noise:
        check_alike(updates, shape)
    if spec.clip_norm:
        updates = [clip_update(update, state, shape, spec.clip_norm) for update in updates]
    if spec.rule == "krum":
        places = krum(updates, spec.liars)
        weights = weights[places] / weights[places].sum()
        return [updates[place] for place in places], weights
    if spec.noise:  # a weight says how many examples a device has, and moves the mean by more
        weights = np.full(len(updates), 1.0 / len(updates))
    return updates, weights


def _noised(
    spec: AggregateSpec, before: GlobalState, after: GlobalState, count: int
) -> GlobalState:
    """Return the state with noise on all that the updates have changed; scores stay the server's."""
    deviation = spec.noise * spec.clip_norm / count
    return replace(
        after,
        adapters=add_noise(after.adapters, deviation),
        head=add_noise(after.head, deviation),
        importance=before.importance,
    )


def _shrunk(  # noqa: PLR0917 - what a round leaves, in the order it came about
    spec: AggregateSpec,
    before: GlobalState,
    after: GlobalState,
    updates: Sequence[Update],
    weights: Floats,
    shape: ModelShape,
    planned: Kept | None,
) -> GlobalState:
    """Return the state with what cumulative pruning leaves of the model and on the devices."""
    if spec.as_planned:
        whole = [row for row, update in enumerate(updates) if update.kept == planned]
        heard = [updates[row] for row in whole]
        scores = pooled_scores(before, heard, weights[whole], memory=spec.memory)
        is_dense = planned == keep_all(shape)
        return replace(after, importance=scores, kept=None if is_dense else planned)
    scores = pooled_scores(before, updates, weights, memory=spec.memory)
    return replace(
        after,
        importance=scores,
        kept=global_kept(updates, scores, shape),
        devices=remembered(before, updates),
    )


def _weights(weights: ArrayLike, count: int) -> Floats:
    values = np.asarray(weights, np.float64)
    if values.shape != (count,) or not np.all(np.isfinite(values)) or np.any(values <= 0):
        raise ModelError(
            f"aggregation needs one positive weight for each of {count} updates, got "
            f"{values.tolist()}"
        )
    return np.asarray(values / values.sum())


def _norm_weights(updates: Sequence[Update], data_weights: Floats) -> Floats:
    """Return HETLoRA's weights; the data's where every product is still zero."""
    squares = np.zeros(len(updates))
    for place, update in enumerate(updates):
        for name in layer_names(update.adapters):
            a, b = update.adapters[f"{name}.A"].double(), update.adapters[f"{name}.B"].double()
            # |B A|_F^2 = <B'B, AA'>, which needs no (out, in) matrix.
            squares[place] += max(float(((b.T @ b) * (a @ a.T)).sum()), 0.0)
    norms = np.sqrt(squares)
    return np.asarray(norms / norms.sum()) if norms.sum() > 0 else data_weights


def _parts(
    name: str, linear: Linear, updates: Sequence[Update], weights: Floats, shape: ModelShape
) -> list[_Part]:
    parts = []
    for update, weight in zip(updates, weights, strict=True):
        columns, rows = linear_index(shape, linear, update.kept, int(name.partition(".")[0]))
        a, b = update.adapters[f"{name}.A"], update.adapters[f"{name}.B"]
        parts.append(_Part(a, b, columns, rows, float(weight)))
    return parts


def _averaged(
    previous: tuple[torch.Tensor, torch.Tensor], parts: Sequence[_Part], *, nested: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Average the factors separately; B is handled as its transpose."""
    mean = _nested_mean if nested else _mean
    a = mean(previous[0], [(part.a, part.columns, part.weight) for part in parts])
    b = mean(previous[1].T, [(part.b.T, part.rows, part.weight) for part in parts])
    return a, b.T.contiguous()


def _mean(
    previous: torch.Tensor, pieces: Sequence[tuple[torch.Tensor, Ints | None, float]]
) -> torch.Tensor:
    """Return the mean of (rank_i, kept_i) pieces on the (rank, size) grid, column by column.

    Smaller ranks count as zeros up to the largest of the round. What is beyond it nobody trained:
    it stays, as factors that are both zero would never learn again.
    """
    total = torch.zeros(previous.shape, dtype=torch.float64)
    cover = torch.zeros(previous.shape[1], dtype=torch.float64)
    for piece, index, weight in pieces:
        place = slice(None) if index is None else torch.from_numpy(index)
        total[: piece.shape[0], place] += weight * piece.cpu().double()
        cover[place] += weight
    mean = total / cover.clamp_min(torch.finfo(torch.float64).tiny)
    largest = max(piece.shape[0] for piece, _, _ in pieces)
    is_trained = (cover > 0) & (torch.arange(previous.shape[0]) < largest)[:, None]
    return torch.where(is_trained, mean.to(previous.dtype), previous.cpu())


def _nested_mean(
    previous: torch.Tensor, pieces: Sequence[tuple[torch.Tensor, Ints | None, float]]
) -> torch.Tensor:
    """Return the mean of (rank_i, kept_i) pieces, each number over those who trained it."""
    total = torch.zeros(previous.shape, dtype=torch.float64)
    cover = torch.zeros(previous.shape, dtype=torch.float64)
    for piece, index, weight in pieces:
        place = slice(piece.shape[0]), slice(None) if index is None else torch.from_numpy(index)
        total[place] += weight * piece.cpu().double()
        cover[place] += weight
    mean = total / cover.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(cover > 0, mean.to(previous.dtype), previous.cpu())


def _stack(
    previous: tuple[torch.Tensor, torch.Tensor], parts: Sequence[_Part],
    *, starts: Sequence[_Part] = (),
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
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
    stacked_b: torch.Tensor,
    stacked_a: torch.Tensor,
    previous: tuple[torch.Tensor, torch.Tensor],
    cover: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Close a stack whose columns are pruned: the previous product where nobody kept a column."""
    old_a, old_b = previous
    lost = cover == 0
    closing_a = torch.cat([old_a * lost, old_a], 0)
    closing_b = torch.cat([old_b, torch.zeros_like(old_b)], 1)
    return torch.cat([stacked_b, closing_b], 1), torch.cat([stacked_a, closing_a], 0)


def _product(previous: tuple[torch.Tensor, torch.Tensor], parts: Sequence[_Part]) -> torch.Tensor:
    """Return the covered mean of the products, (out, in), as the stacked rule merges it."""
    b, a = _stack(previous, parts)
    return (b @ a).to(previous[0].dtype)


def _factored(
    previous: tuple[torch.Tensor, torch.Tensor], parts: Sequence[_Part],
    *, starts: Sequence[_Part] = (),
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
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
            _Part(old[a], old[b], None, None, 1.0 - share), _Part(new[a], new[b], None, None, share)
        ]  # fmt: skip
        mixed[a], mixed[b] = _factored((new[a], new[b]), parts)
    return mixed


def _head(previous: Mapping[str, torch.Tensor], updates: Sequence[Update], weights: Floats) -> Head:
    """Average the task heads by the devices' data; every rule does it the same way."""
    head: Head = {}
    for name, old in previous.items():
        total = torch.zeros(old.shape, dtype=torch.float64)
        for update, weight in zip(updates, weights, strict=True):
            total += float(weight) * update.head[name].cpu().double()
        head[name] = total.to(old.dtype)
    return head


def _importance(
    state: GlobalState, updates: Sequence[Update], weights: Floats
) -> Importance | None:
    measured = [
        (update.importance, float(weight))
        for update, weight in zip(updates, weights, strict=True)
        if update.importance is not None
    ]
    if not measured:
        return state.importance
    return pool([item for item, _ in measured], [weight for _, weight in measured])
