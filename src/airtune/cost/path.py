"""The order in which a model loses heads and channels: one knapsack over both.

What goes next is the key-value group, or the step of FFN channels, that costs least for each weight
saved, in every block alike. FLOPs, memory and LoRA bytes of these structures are proportional to
their weights, so they are saved in the same order. What a structure costs is read off the model's
sensitivity, made convex, so that the order is the optimum of the relaxed knapsack at every size.

Where nothing was measured a typical sensitivity stands in: noise over signal of .6 u / (1 - u) for a
fraction u of the channels and of .25 v / (1 - v) for a fraction v of the heads, four times that where
heads share keys and values, fitted by eye to an encoder of 22.7M parameters and to Llamas of .3M, .9M
and 135M. Reconstructed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from airtune.plan import Floats, Ints, ModelShape, Sensitivity

Order = Literal["measured", "proportional"]
"""measured: as above · proportional: heads and channels in balance, as the papers prune."""

TILE, TILED_FROM = 32, 1024
"""Channels that go together, in models with at least so many of them: what quantised files and
processors' tiles ask for."""
BLOCK, NEAR = 256, 0.01
"""Channels of which a slice of a given size keeps a multiple, for quantised files that pack so many
together, where that is so near to the size."""


@dataclass(frozen=True, slots=True)
class PruningPath:
    """What a block keeps from dense to the heaviest slice, in columns of shape (steps,)."""

    groups: Ints
    """Key-value groups; never rises, at least 1."""
    channels: Ints
    """FFN channels; never rises, at least one tile."""
    pruned: Floats
    """Fraction of the blocks' linear weights removed; rises strictly from 0."""
    cost: Floats
    """Noise over signal of what the untuned model then computes, made convex; never falls."""


def pruning_path(
    shape: ModelShape,
    sensitivity: Sensitivity | None = None,
    *,
    order: Order = "measured",
    heads: bool = True,
) -> PruningPath:
    """Return the order in which groups and channels go.

    Args:
        shape: The unpruned model.
        sensitivity: What heads and channels cost; None = what is typical.
        order: By cost, or in balance.
        heads: Whether heads go at all.

    >>> from airtune.cost.shapes import llama_like
    >>> shape = llama_like("llama", blocks=2, width=8, heads=4, kv_groups=2, head_dim=2, ffn=4,
    ...                    vocab=10, tied=True)
    >>> path = pruning_path(shape, order="proportional")
    >>> path.groups.tolist(), path.channels.tolist()
    ([2, 2, 1, 1, 1], [4, 3, 3, 2, 1])
    """
    groups = np.arange(shape.kv_groups, 0 if heads else shape.kv_groups - 1, -1)
    channels = channel_counts(shape)
    gone = 1.0 - groups / shape.kv_groups, 1.0 - channels / shape.ffn
    known = typical(shape) if sensitivity is None else sensitivity
    costs = (
        _convex(np.array(known.heads), np.array(known.heads_cost), gone[0]),
        _convex(np.array(known.ffn), np.array(known.ffn_cost), gone[1]),
    )
    if order == "proportional":
        keys = tuple((part[1:] + part[:-1]) / 2.0 for part in gone)
    else:
        saved = shape.pruned_fraction(gone[0], 0.0), shape.pruned_fraction(0.0, gone[1])
        keys = tuple(
            np.diff(cost) / np.diff(weights) for cost, weights in zip(costs, saved, strict=True)
        )
    # channels first where both cost the same
    is_group = np.repeat([False, True], [len(keys[1]), len(keys[0])])
    turns = is_group[np.argsort(np.concatenate([keys[1], keys[0]]), kind="stable")]
    lost = np.concatenate([[0], np.cumsum(turns)]), np.concatenate([[0], np.cumsum(~turns)])
    kept = groups[lost[0]], channels[lost[1]]
    pruned = shape.pruned_fraction(1.0 - kept[0] / shape.kv_groups, 1.0 - kept[1] / shape.ffn)
    return PruningPath(
        np.asarray(kept[0], np.int64),
        np.asarray(kept[1], np.int64),
        pruned,
        costs[0][lost[0]] + costs[1][lost[1]],
    )


def most_pruned(shape: ModelShape, sensitivity: Sensitivity) -> float:
    """Return the largest fraction to remove: beyond it the noise outgrows the signal.

    There the loss of an untuned model begins to run away. Of a Llama of 135M parameters, mended by
    means, it was 1.26 nats dense, 1.75 with .31 of the blocks' weights gone, 2.50 with .44 and 4.10
    with .56; its noise reaches its signal at .34.
    """
    path = pruning_path(shape, sensitivity)
    return float(path.pruned[np.flatnonzero(path.cost <= 1.0)[-1]])


def counts_for(shape: ModelShape, path: PruningPath, pruned: float) -> tuple[int, int] | None:
    """Return (groups, channels) of the slice on a path that is nearest to a size.

    The groups are the path's, before the step that would pass the size where the channels suffice.

    Args:
        shape: The unpruned model.
        path: In which order structures go.
        pruned: Fraction of the blocks' linear weights to remove.

    Returns:
        The counts, or None where the heaviest slice of the path is lighter.
    """
    counts = channel_counts(shape)
    reach = np.flatnonzero(path.pruned >= pruned - 1e-12)
    for step in (reach[0] - 1, reach[0]) if reach.size else ():
        groups = int(path.groups[max(step, 0)])
        found = shape.pruned_fraction(1.0 - groups / shape.kv_groups, 1.0 - counts / shape.ffn)
        if found[-1] < pruned - 1e-12:
            continue
        away = np.abs(found - pruned)
        whole = np.where(counts % BLOCK == 0, away, np.inf)
        return groups, int(counts[np.argmin(whole if whole.min() <= NEAR else away)])
    return None


def channel_counts(shape: ModelShape) -> Ints:
    """Return the counts of channels that a slice may keep, falling from all of them."""
    tile = TILE if shape.ffn >= TILED_FROM else 1
    below = np.arange((shape.ffn - 1) // tile * tile, 0, -tile)
    return np.concatenate([[shape.ffn], below]).astype(np.int64)


def typical(shape: ModelShape) -> Sensitivity:
    """Return a rough sensitivity for a model that was not measured."""
    gone = np.linspace(0.0, 0.875, 8)
    rise = gone / (1.0 - gone)
    shared = 4.0 if shape.heads > shape.kv_groups else 1.0
    return Sensitivity(
        tuple(gone.tolist()),
        tuple((0.25 * shared * rise).tolist()),
        tuple(gone.tolist()),
        tuple((0.6 * rise).tolist()),
        "typical, not measured",
    )


def _convex(at: Floats, cost: Floats, where: Floats) -> Floats:
    """Return the largest convex curve below the measured points, and its last slope beyond them."""
    hull = [0]
    for point in range(1, len(at)):
        while len(hull) > 1 and _slope(at, cost, hull[-2], hull[-1]) >= _slope(
            at, cost, hull[-1], point
        ):
            hull.pop()
        hull.append(point)
    if len(hull) < 2:  # a single count: there is nothing to choose
        return np.zeros_like(where)
    last = _slope(at, cost, hull[-2], hull[-1])
    beyond = np.maximum(where - at[hull[-1]], 0.0) * last
    return np.asarray(np.interp(where, at[hull], cost[hull]) + beyond)


def _slope(at: Floats, cost: Floats, left: int, right: int) -> float:
    return float((cost[right] - cost[left]) / (at[right] - at[left]))
