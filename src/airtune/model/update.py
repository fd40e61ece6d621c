"""Checks of an update before it counts."""

from __future__ import annotations

import numpy as np
import torch

from airtune.errors import ModelError
from airtune.model.importance import Importance
from airtune.model.kept import check_kept
from airtune.model.lora import Adapters, layer_names, slice_of
from airtune.model.state import GlobalState, Update
from airtune.plan import ModelShape


def check_update(update: Update, state: GlobalState, shape: ModelShape) -> None:
    """Refuse an update that lies about itself.

    Raises:
        ModelError: if its slice, its tensors' names or shapes or its rank do not fit, or a number
            is not finite.
    """
    try:
        check_kept(update.kept, shape)
    except ModelError as error:
        raise ModelError(f"update of device {update.device}: {error}") from error
    wanted = _wanted_shapes(update, state, shape)
    given = {name: tuple(tensor.shape) for name, tensor in (update.adapters | update.head).items()}
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise ModelError(
                f"update of device {update.device}: {name} must be {wanted.get(name, 'absent')} "
                f"for its slice and rank {update.rank}, got {given.get(name, 'nothing')}"
            )
    for name, tensor in (update.adapters | update.head).items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"update of device {update.device}: {name} holds NaN or infinity; it is refused"
            )
    if update.importance is not None:
        _check_importance(update, update.importance, shape)


def sent_of(update: Update, state: GlobalState, shape: ModelShape) -> Adapters:
    """Return what each tensor of an update was before, as its device or the server was given it."""
    found: Adapters = {}
    for name in update.adapters:
        rank = update.adapters[f"{name[:-1]}A"].shape[0]
        found[name] = state.adapters[name][slice_of(name, shape, update.kept, rank)].clone()
    return found


def _check_importance(update: Update, scores: Importance, shape: ModelShape) -> None:
    for name, rows, kept, size in (
        ("groups", scores.groups, update.kept.groups, shape.kv_groups),
        ("channels", scores.channels, update.kept.channels, shape.ffn),
    ):
        if rows.shape != (shape.blocks, size):
            raise ModelError(
                f"update of device {update.device}: importance of {name} must be "
                f"{(shape.blocks, size)}, got {rows.shape}"
            )
        if not all(np.isfinite(row[index]).all() for row, index in zip(rows, kept, strict=True)):
            raise ModelError(
                f"update of device {update.device}: importance of {name} that it kept is not "
                "finite; it is refused"
            )


def _wanted_shapes(
    update: Update, state: GlobalState, shape: ModelShape
) -> dict[str, tuple[int, ...]]:
    wanted = {name: tuple(tensor.shape) for name, tensor in state.head.items()}
    linears = {linear.name: linear for linear in shape.linears}
    for name in layer_names(state.adapters):
        full = state.adapters[f"{name}.A"].shape[0]
        if not 1 <= update.rank <= full:
            raise ModelError(
                f"update of device {update.device}: rank must be between 1 and {full}, got "
                f"{update.rank}"
            )
        block, _, linear = name.partition(".")
        columns, rows = shape.linear_sizes(
            linears[linear],
            len(update.kept.groups[int(block)]),
            len(update.kept.channels[int(block)]),
        )
        is_own = not update.cut or int(block) < update.cut
        rank = update.rank if is_own else full
        wanted |= {f"{name}.A": (rank, int(columns)), f"{name}.B": (int(rows), rank)}
    return wanted
