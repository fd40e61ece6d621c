"""How much of a model is written: the fraction that is asked for, what is left, and how it is told."""

from __future__ import annotations

from typing import Any

from airtune.cost import counts_for, pruning_path
from airtune.errors import RecipeError
from airtune.model.base import BaseModel
from airtune.model.importance import Importance
from airtune.model.kept import Kept
from airtune.model.slicing import choose_kept
from airtune.plan import Sensitivity


def check_fraction(prune: float) -> None:
    """Refuse a fraction of the blocks' weights that cannot be removed.

    Raises:
        RecipeError: if it is not above 0 and below 1.
    """
    if not 0.0 < prune < 1.0:
        raise RecipeError(f"prune must be above 0 and below 1, got {prune:g}")


def kept_at(
    base: BaseModel, importance: Importance, sensitivity: Sensitivity | None, prune: float
) -> Kept:
    """Return what matters most of a model that loses so much.

    Args:
        base: the dense model.
        importance: of its heads and channels.
        sensitivity: what heads and channels cost; None = the typical.
        prune: fraction of the blocks' weights to remove.

    Raises:
        RecipeError: if a block would keep nothing.
    """
    path = pruning_path(base.shape, sensitivity, heads=base.family.any_head_count)
    counts = counts_for(base.shape, path, prune)
    if counts is None:
        raise RecipeError(
            f"prune {prune:g} would leave nothing of a block; the most is {path.pruned[-1]:.3f}"
        )
    return choose_kept(importance, base.shape, *counts)


def slice_of(base: BaseModel, kept: Kept) -> dict[str, Any]:
    """Return what is left of the model, in counts."""
    shape, groups, channels = base.shape, len(kept.groups[0]), len(kept.channels[0])
    pruned = shape.pruned_fraction(1.0 - groups / shape.kv_groups, 1.0 - channels / shape.ffn)
    found: dict[str, Any] = {
        "groups": groups,
        "of_groups": shape.kv_groups,
        "channels": channels,
        "of_channels": shape.ffn,
        "pruned": float(pruned),
    }
    if channels < shape.ffn and not base.family.any_head_count:
        found["heads"] = f"kept: a plain {base.family.name} config cannot have fewer"
    return found
