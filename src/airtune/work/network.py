"""The networks of a round: the base as it stands, a device's slice of it, what the user will get."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

from airtune.errors import ModelError
from airtune.model.base import BaseModel
from airtune.model.cumulative import blended, narrowed
from airtune.model.kept import Kept, keep_all
from airtune.model.lora import LoraNetwork, attach, take
from airtune.model.mending import Mending, biased_layers
from airtune.model.slicing import choose_kept, slice_network
from airtune.model.state import GlobalState, current_base
from airtune.plan import Assignment, ModelShape, WorkSpec

__all__ = [
    "checkpoint_",
    "current_base",
    "kept_by",
    "mending_of",
    "stages_by",
    "tuned_network",
    "wants_means",
]


def kept_by(row: Assignment, state: GlobalState, shape: ModelShape, work: WorkSpec) -> Kept:
    """Return what a device keeps under its assignment: the most important structures.

    Of the dense model, or of what the device has left where pruning is cumulative.

    Raises:
        ModelError: if something is to be pruned and no importance was measured, or a structure would
            have to come back.
    """
    groups, channels = (
        int(shape.kept_groups(row.prune_heads)),
        int(shape.kept_channels(row.prune_ffn)),
    )
    device = state.devices.get(row.device)
    left = keep_all(shape) if device is None else device.kept
    if groups == shape.kv_groups and channels == shape.ffn and device is None:
        return left
    if state.importance is None:
        raise ModelError(
            f"device {row.device} is told to prune, but no importance was measured; "
            "measure it before the first round that prunes"
        )
    if not work.cumulative:
        return choose_kept(state.importance, shape, groups, channels)
    own = None if device is None else device.importance
    scores = blended(own, state.importance, work.own_importance)
    try:
        return narrowed(left, scores, groups=groups, channels=channels, over=work.over)
    except ModelError as error:
        raise ModelError(f"device {row.device}: {error}") from error


def stages_by(
    row: Assignment, state: GlobalState, shape: ModelShape, work: WorkSpec
) -> tuple[Kept, ...]:
    """Return what a device keeps after each of a round's prunings; the last is `kept_by`'s.

    A round of more local iterations than lie between prunings comes to its slice in even steps. The
    clock charges the round's last slice, which the first iterations exceed by a part of one step.

    Raises:
        ModelError: as `kept_by` does.
    """
    final = kept_by(row, state, shape, work)
    prunings = -(-row.local_steps // work.prune_every) if work.prune_every else 1
    if not work.cumulative or prunings == 1 or state.importance is None:
        return (final,)
    device = state.devices.get(row.device)
    left = keep_all(shape) if device is None else device.kept
    own = None if device is None else device.importance
    scores = blended(own, state.importance, work.own_importance)
    stages = []
    for index in range(1, prunings):
        groups, channels = (
            _between(before, after, index / prunings, whole=work.over == "layers")
            for before, after in ((left.groups, final.groups), (left.channels, final.channels))
        )
        stages.append(narrowed(left, scores, groups=groups, channels=channels, over=work.over))
    return (*stages, final)


def _between(before: Sequence[Sized], after: Sequence[Sized], part: float, *, whole: bool) -> float:
    """Return how much a block keeps, on average, when a part of the pruning is done."""
    start, end = (sum(map(len, rows)) / len(rows) for rows in (before, after))
    count = start + (end - start) * part
    return float(round(count)) if whole else count


def wants_means(base: BaseModel, work: WorkSpec) -> bool:
    """Return whether slices are mended, so that means have to be measured.

    A cumulative pruning ends in a model that is saved: the mean alone goes only into biases that a
    plain config of the family can say.
    """
    if work.mend == "mean":
        return bool(biased_layers(base, saved=work.cumulative))
    return work.mend == "least-squares"


def mending_of(base: BaseModel, state: GlobalState, work: WorkSpec) -> Mending | None:
    """Return how slices make up for what they lack; None where they do not.

    Raises:
        ModelError: if least squares are asked for and no second moments were measured.
    """
    known = state.importance
    if known is None or known.means is None or not wants_means(base, work):
        return None
    grams = state.grams if work.mend == "least-squares" else None
    if grams is None and work.mend == "least-squares":
        raise ModelError(
            "slices are to be mended by least squares, but no second moments were measured; "
            "measure them with the importance, or set train.mend to mean"
        )
    return Mending(known.means, grams, biased_layers(base, saved=work.cumulative))


def tuned_network(
    base: BaseModel, state: GlobalState, *, scale: float, work: WorkSpec | None = None
) -> LoraNetwork:
    """Return the model the user will get: the base with the global adapters and head.

    It is sliced where pruning is cumulative, and dense otherwise.
    """
    whole = current_base(base, state)
    network, adapters = whole.network, state.adapters
    if state.kept is not None:
        how = WorkSpec(cumulative=True) if work is None else work
        network = slice_network(whole, state.kept, mending=mending_of(base, state, how))
        rank = next(iter(adapters.values())).shape[0]
        adapters = take(adapters, base.shape, state.kept, rank)
    return attach(
        network, base.family, [adapters], scale=scale, heads=[state.head] if state.head else ()
    ).train(False)


def checkpoint_(network: Any) -> None:
    """Keep only the inputs of blocks for the backward pass; the dense base is left alone.

    transformers asks for gradients of the embeddings too; they are not wanted here, and would cost
    another hidden state in a model with a norm behind its embeddings.

    Args:
        network: a transformers model; changed in place.
    """
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    # transformers renamed it in 5.23 and warns about the older name
    enable = next(getattr(network, name) for name in names if hasattr(network, name))
    enable()
    network.disable_input_require_grads()
