"""What stays of a pruned model, block by block, and which rows and columns that means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.errors import ModelError
from airtune.plan import Ints, Linear, ModelShape
from airtune.plan.shape import Axis


@dataclass(frozen=True, slots=True)
class Kept:
    """Indices of what stays in each block, sorted, each once."""

    groups: tuple[Ints, ...]
    """Key-value groups, one array a block."""
    channels: tuple[Ints, ...]
    """FFN channels, one array a block."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Kept) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())

    def key(self) -> bytes:
        """Return bytes that are equal exactly where the slices are, to group devices by."""
        lines = (np.append(row, -1) for row in (*self.groups, *self.channels))
        return np.concatenate([*lines]).astype(np.int64).tobytes()


def keep_all(shape: ModelShape) -> Kept:
    """Return the slice that removes nothing."""
    groups, channels = np.arange(shape.kv_groups), np.arange(shape.ffn)
    return Kept((groups,) * shape.blocks, (channels,) * shape.blocks)


def check_kept(kept: Kept, shape: ModelShape) -> None:
    """Refuse indices that do not fit the model.

    Raises:
        ModelError: if a block is missing, or its indices are empty, repeated, unsorted or out of
            range.
    """
    for name, rows, limit in (
        ("groups", kept.groups, shape.kv_groups),
        ("channels", kept.channels, shape.ffn),
    ):
        if len(rows) != shape.blocks:
            raise ModelError(f"kept {name} must cover {shape.blocks} blocks, got {len(rows)}")
        for block, row in enumerate(rows):
            fits = row.size and row[0] >= 0 and row[-1] < limit and bool(np.all(np.diff(row) > 0))
            if not fits:
                raise ModelError(
                    f"kept {name} of block {block} must be 1 to {limit} rising indices "
                    f"below {limit}, got {row.tolist()[:8]}"
                )


def axis_index(shape: ModelShape, axis: Axis, kept: Kept, block: int) -> Ints | None:
    """Return the kept positions along an axis of a block's layers, or None where all stay."""
    if axis == "width":
        return None
    if axis == "ffn":
        return kept.channels[block] if len(kept.channels[block]) < shape.ffn else None
    groups = kept.groups[block]
    if len(groups) == shape.kv_groups:
        return None
    span = shape.span(axis)
    return np.asarray((groups[:, None] * span + np.arange(span)).reshape(-1), np.int64)


def removed_index(shape: ModelShape, axis: Axis, kept: Kept, block: int) -> Ints | None:
    """Return the removed positions along an axis, or None where all stay."""
    index = axis_index(shape, axis, kept, block)
    if index is None:
        return None
    size = int(shape.axis_size(axis, shape.kv_groups, shape.ffn))
    return np.setdiff1d(np.arange(size), index, assume_unique=True)


def linear_index(
    shape: ModelShape, linear: Linear, kept: Kept, block: int
) -> tuple[Ints | None, Ints | None]:
    """Return the kept columns (inputs) and rows (outputs) of a layer; None where all stay.

    A fused layer keeps the same structures in each of its parts.
    """
    columns = axis_index(shape, linear.in_axis, kept, block)
    parts: list[Ints] = []
    first = 0
    for axis in linear.parts:
        index = axis_index(shape, axis, kept, block)
        if index is None:
            return columns, None
        parts.append(index + first)
        first += int(shape.axis_size(axis, shape.kv_groups, shape.ffn))
    return columns, np.concatenate(parts)
