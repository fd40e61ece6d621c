"""Pruning that goes on from round to round: what a device keeps of what it has left.

A structure that a device removed never comes back to it; one that another device still has goes on
being trained there. The server's model is chosen anew after each round from the scores pooled over
devices, where a device that removed a structure counts as a score of zero: it is as large as the
least pruned update of the round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from airtune.errors import ModelError
from airtune.model.importance import Importance
from airtune.model.kept import Kept, keep_all
from airtune.model.state import DeviceState, GlobalState, Update
from airtune.plan import Floats, Ints, ModelShape

Over = Literal["layers", "model"]


def narrowed(
    kept: Kept, scores: Importance, *, groups: float, channels: float, over: Over = "layers"
) -> Kept:
    """Return the most important structures of a slice.

    Args:
        kept: What is left so far.
        scores: Larger = keep; NaN ranks last.
        groups: Key-value groups to keep in a block, or on average with `over="model"`.
        channels: FFN channels likewise.
        over: Compete within each block, or over the whole model with at least one in each block.

    Raises:
        ModelError: if more is to be kept than is left, or nothing.
    """
    return Kept(
        _chosen("groups", kept.groups, scores.groups, groups, over),
        _chosen("channels", kept.channels, scores.channels, channels, over),
    )


def blended(own: Importance | None, pooled: Importance, share: float) -> Importance:
    """Return `share` of a device's own scores and the rest of the pooled ones.

    Where either is unknown the other counts alone.
    """
    if own is None or share == 0.0:
        return pooled
    return replace(
        pooled,
        groups=_mixed(own.groups, pooled.groups, share),
        channels=_mixed(own.channels, pooled.channels, share),
    )


def pooled_scores(
    state: GlobalState, updates: Sequence[Update], weights: Floats, *, memory: float
) -> Importance | None:
    """Return the pooled scores after a round; a removed structure counts as zero.

    Args:
        state: With the scores and the means so far.
        updates: Those that report importance count.
        weights: One an update.
        memory: Share of the old scores.
    """
    told = [
        (update.importance, float(weight))
        for update, weight in zip(updates, weights, strict=True)
        if update.importance is not None
    ]
    if not told:
        return state.importance
    share = np.array([weight for _, weight in told]) / sum(weight for _, weight in told)
    groups = np.tensordot(share, np.nan_to_num([item.groups for item, _ in told]), 1)
    channels = np.tensordot(share, np.nan_to_num([item.channels for item, _ in told]), 1)
    old = state.importance
    if old is None:
        return Importance(groups, channels)
    fresh = 1.0 - memory
    return Importance(
        memory * np.nan_to_num(old.groups) + fresh * groups,
        memory * np.nan_to_num(old.channels) + fresh * channels,
        old.means,
    )


def remembered(state: GlobalState, updates: Sequence[Update]) -> Mapping[int, DeviceState]:
    """Return what each device has left after a round."""
    return dict(state.devices) | {
        update.device: DeviceState(update.kept, update.importance) for update in updates
    }


def global_kept(
    updates: Sequence[Update], scores: Importance | None, shape: ModelShape
) -> Kept | None:
    """Return the server's slice: as large as the least pruned update, by pooled scores.

    None where nothing is pruned yet.

    Raises:
        ModelError: if something is pruned and nothing was measured.
    """
    groups, channels = (
        max(sum(map(len, getattr(update.kept, kind))) for update in updates) / shape.blocks
        for kind in ("groups", "channels")
    )
    if groups == shape.kv_groups and channels == shape.ffn:
        return None
    if scores is None:
        raise ModelError("updates are pruned, but no importance was measured to choose a model by")
    over: Over = "layers" if all(_is_uniform(update.kept) for update in updates) else "model"
    return narrowed(keep_all(shape), scores, groups=groups, channels=channels, over=over)


def _is_uniform(kept: Kept) -> bool:
    return all(len({len(row) for row in rows}) == 1 for rows in (kept.groups, kept.channels))


def _chosen(
    name: str, kept: Sequence[Ints], scores: Floats, count: float, over: Over
) -> tuple[Ints, ...]:
    left = sum(map(len, kept)) if over == "model" else min(map(len, kept))
    wanted = round(count * len(kept)) if over == "model" else round(count)
    least = len(kept) if over == "model" else 1
    if not least <= wanted <= left:
        raise ModelError(
            f"{name} to keep must be between {least} and the {left} that are left, got {wanted}; "
            "pruned structures never come back"
        )
    worth = [np.nan_to_num(scores[block][row], nan=-1.0) for block, row in enumerate(kept)]
    order = [np.argsort(-row, kind="stable") for row in worth]
    if over == "layers":
        return tuple(np.sort(row[index[:wanted]]) for row, index in zip(kept, order, strict=True))
    counts = _counts(worth, order, wanted)
    return tuple(
        np.sort(row[index[:size]]) for row, index, size in zip(kept, order, counts, strict=True)
    )


def _counts(worth: Sequence[Floats], order: Sequence[Ints], wanted: int) -> list[int]:
    """Return how many each block keeps when all compete: the best of each, then the best of all."""
    rest = np.concatenate([row[index[1:]] for row, index in zip(worth, order, strict=True)])
    block = np.repeat(np.arange(len(worth)), [len(row) - 1 for row in worth])
    best = np.argsort(-rest, kind="stable")[: wanted - len(worth)]
    return [int(count) + 1 for count in np.bincount(block[best], minlength=len(worth))]


def _mixed(own: Floats, pooled: Floats, share: float) -> Floats:
    mixed = share * own + (1.0 - share) * pooled
    return np.where(np.isnan(own), pooled, np.where(np.isnan(pooled), own, mixed))
