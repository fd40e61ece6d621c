"""From the devices' updates to the next global adapters, for unlike slices and ranks.

With P_i the slice of device i, w_i its weight and dW_i = B_i A_i, only one side of a linear layer
is ever pruned, so a row (or column) is averaged over the devices that kept it:

    row j of dW = sum_i w_i [i keeps j] (B_i A_i)_j / sum_i w_i [i keeps j]

which is a diagonal scaling of stacked factors. What no device kept stays as it was: a structure is
never lost while it may come back. How the factors of a layer are combined is a rule of `model.rules`;
clipping and noise are in `model.protect`. Coverage over unlike slices is ours; the papers have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike

from airtune.errors import ModelError, TrainingError
from airtune.model.cumulative import global_kept, pooled_scores, remembered
from airtune.model.importance import Importance, pool
from airtune.model.kept import Kept, keep_all, linear_index
from airtune.model.lora import Adapters, layer_names
from airtune.model.protect import add_noise, check_alike, clip_update
from airtune.model.rules import RULES
from airtune.model.rules.rule import Layer, LayerPart, Rule
from airtune.model.state import GlobalState, Update
from airtune.model.update import check_update, sent_of
from airtune.plan import AggregateSpec, Floats, Linear, ModelShape


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
    rule = RULES[spec.rule]
    updates, data_weights = _protected(spec, rule, state, updates, data_weights, shape)
    used = rule.weigh(updates, data_weights)
    adapters, merged = _layers(
        spec, rule, state, updates, used, shape=shape, scale=scale, seed=seed
    )
    after = replace(
        state,
        round=state.round + 1,
        adapters=adapters,
        head=rule.head(state.head, updates, data_weights, spec),
        importance=_importance(state, updates, data_weights)
        if rule.pools_scores
        else state.importance,
        merged=merged,
    )
    if spec.noise:
        return _noised(spec, state, after, len(updates))
    if not spec.shrinks:
        return after
    return _shrunk(spec, state, after, updates, data_weights, shape, planned)


def _layers(
    spec: AggregateSpec,
    rule: Rule,
    state: GlobalState,
    updates: Sequence[Update],
    weights: Floats,
    *,
    shape: ModelShape,
    scale: float,
    seed: int,
) -> tuple[Adapters, dict[str, torch.Tensor]]:
    """Return the next adapters and what has been merged into the base, layer by layer."""
    linears = {linear.name: linear for linear in shape.linears}
    adapters: Adapters = {}
    merged = dict(state.merged)
    sent = [
        replace(one, adapters=sent_of(one, state, shape))
        for one in (updates if rule.needs_sent else ())
    ]
    for name in layer_names(state.adapters):
        linear = linears[name.partition(".")[2]]
        made = rule.combine(
            Layer(
                name,
                (state.adapters[f"{name}.A"], state.adapters[f"{name}.B"]),
                _parts(name, linear, updates, weights, shape),
                _parts(name, linear, sent, -weights, shape) if sent else (),
                spec,
                scale,
                seed,
                state.round + 1,
            )
        )
        adapters[f"{name}.A"], adapters[f"{name}.B"] = made.factors
        if made.merged is not None:
            merged[name] = merged[name] + made.merged if name in merged else made.merged
    return adapters, merged


def _protected(  # noqa: PLR0917 - what came back, and what it is judged by
    spec: AggregateSpec,
    rule: Rule,
    state: GlobalState,
    updates: Sequence[Update],
    weights: Floats,
    shape: ModelShape,
) -> tuple[Sequence[Update], Floats]:
    """Return the updates that count, clipped, and their weights."""
    if rule.needs_alike or spec.noise:
        check_alike(updates, shape)
    if spec.clip_norm:
        updates = [clip_update(update, state, shape, spec.clip_norm) for update in updates]
    places = rule.choose(updates, spec)
    if len(places) < len(updates):
        updates, weights = [updates[index] for index in places], weights[places]
        weights /= weights.sum()
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


def _parts(
    name: str, linear: Linear, updates: Sequence[Update], weights: Floats, shape: ModelShape
) -> list[LayerPart]:
    parts = []
    for update, weight in zip(updates, weights, strict=True):
        columns, rows = linear_index(shape, linear, update.kept, int(name.partition(".")[0]))
        a, b = update.adapters[f"{name}.A"], update.adapters[f"{name}.B"]
        parts.append(LayerPart(a, b, columns, rows, float(weight)))
    return parts


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
