"""How much is pruned when: levels that end exactly at a sparsity, and the cubic schedule over rounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from airtune.cost import Order, counts_for, pruning_path
from airtune.errors import RecipeError
from airtune.plan import Floats, Ints, ModelShape, Observation, Problem, Sensitivity

Structures = Literal["auto", "heads-and-ffn", "ffn"]

LEVELS = 16
"""Steps between dense and the final sparsity: few enough that devices share slices."""
FIXED_HEADS = frozenset({"bert", "roberta", "distilbert", "modernbert", "gpt2"})
"""Families whose plain configs cannot say that a block has fewer heads."""


@dataclass(frozen=True, slots=True)
class Levels:
    """Pruning levels from dense to the final sparsity, in columns of shape (LEVELS + 1,)."""

    prune_heads: Floats
    prune_ffn: Floats
    pruned: Floats
    """Fraction of the blocks' linear parameters that is gone."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """When how much of the final sparsity is reached.

        s_t = s_f (1 - (1 - p)^3),   p = (t + 1 - t_w) / (T - t_w - t_c) in [0, 1]

    counted after round t, so that the first round prunes already and the last of the T - t_c ends
    exactly at s_f.
    """

    rounds: int
    warmup: int
    """Rounds before the first pruning, t_w."""
    cooldown: int
    """Rounds at the end that only tune, t_c."""
    every: int = 1
    """Rounds between prunings."""

    def progress(self, round: int) -> float:
        """Return p, the part of the pruning rounds that is over, in [0, 1]."""
        span = self.rounds - self.warmup - self.cooldown
        if round + 1 >= self.warmup + span:
            return 1.0
        last = round - (round - self.warmup) % self.every
        return min(max((last + 1 - self.warmup) / span, 0.0), 1.0)

    def floor(self, round: int) -> int:
        """Return the level that every device has at least reached after a round.

        >>> [Schedule(6, 0, 2).floor(round) for round in range(6)]
        [10, 14, 16, 16, 16, 16]
        """
        done = 1.0 - (1.0 - self.progress(round)) ** 3
        return min(math.ceil(LEVELS * done - 1e-9), LEVELS)

    def is_due(self, round: int) -> bool:
        """Return whether devices prune in this round."""
        return round >= self.warmup and (round - self.warmup) % self.every == 0


def schedule_of(problem: Problem, *, warmup: float, cooldown: float, prune_every: int) -> Schedule:
    """Return the schedule of a run; warm-up and cool-down are parts of its rounds.

    Args:
        problem: rounds and local steps.
        warmup: part of the rounds before the first pruning.
        cooldown: part of the rounds that only tune at the end.
        prune_every: local iterations between prunings; where a round has more of them, the local
            work comes to the round's level in several prunings.
    """
    before = math.floor(warmup * problem.rounds)
    after = min(math.floor(cooldown * problem.rounds), problem.rounds - before - 1)
    every = max(1, round(prune_every / problem.workload.local_steps))
    return Schedule(problem.rounds, before, after, every)


def schedule_round(problem: Problem, observation: Observation) -> int:
    """Return the round of the schedule: where seconds are used up sooner than rounds, a later one."""
    used = problem.progress(observation.round, observation.time_s)
    return max(observation.round, math.floor(used * problem.rounds))


def check_sparsity(sparsity: float, warmup: float, cooldown: float, prune_every: int) -> None:
    """Refuse settings that mean nothing.

    Raises:
        RecipeError: naming the setting, its value and its range.
    """
    if not 0.0 < sparsity < 1.0:
        raise RecipeError(f"sparsity must be above 0 and below 1, got {sparsity:g}")
    if not 0.0 <= warmup < 1.0:
        raise RecipeError(f"warmup must be a part of the rounds in [0, 1), got {warmup:g}")
    if not 0.0 <= cooldown < 1.0 - warmup:
        raise RecipeError(
            f"cooldown must be a part of the rounds in [0, {1.0 - warmup:g}), got {cooldown:g}"
        )
    if prune_every < 1:
        raise RecipeError(f"prune_every must be at least 1 local iteration, got {prune_every}")


@dataclass(frozen=True, slots=True)
class PruningTarget:
    """Where pruning is to end, and in which order it goes there."""

    sparsity: float
    """Fraction of the blocks' weights that is gone at the end."""
    structures: Structures
    """What is removed."""
    order: Order = "measured"
    """What goes first."""


def levels_of(problem: Problem, target: PruningTarget) -> Levels:
    """Return the levels of a problem's model on the way to a sparsity, the nearest whole structures.

    Each level keeps a subset of what the one before keeps.

    Raises:
        RecipeError: if the sparsity would leave a block without a head or a channel.
    """
    return levels_of_shape(problem.shape, problem.sensitivity, target)


@lru_cache(maxsize=16)
def levels_of_shape(
    shape: ModelShape, sensitivity: Sensitivity | None, target: PruningTarget
) -> Levels:
    """Return the levels of a model of this shape, as `levels_of` does."""
    path = pruning_path(
        shape, sensitivity, order=target.order, heads=prunes_heads(shape, target.structures)
    )
    final = counts_for(shape, path, target.sparsity)
    if final is None:
        has_heads = path.groups[-1] < shape.kv_groups
        what = "one head group and one FFN channel" if has_heads else "one FFN channel (heads stay)"
        raise RecipeError(
            f"sparsity {target.sparsity:g} would leave a block of this {shape.family} model "
            f"without {what}; the most is {path.pruned[-1]:.3f}; lower method.sparsity"
        )
    groups, channels = final
    heads = 1.0 - np.maximum(path.groups, groups) / shape.kv_groups
    ffn = 1.0 - np.maximum(path.channels, channels) / shape.ffn
    heads = np.append(heads, 1.0 - groups / shape.kv_groups)
    ffn = np.append(ffn, 1.0 - channels / shape.ffn)
    pruned = shape.pruned_fraction(heads, ffn)
    aims = pruned[-1] * np.arange(LEVELS + 1) / LEVELS
    level = np.searchsorted(pruned, aims + 1e-12, side="right") - 1
    return Levels(heads[level], ffn[level], pruned[level])


def prunes_heads(shape: ModelShape, structures: Structures) -> bool:
    """Return whether heads are pruned too: by default where the result can be saved plainly."""
    return structures == "heads-and-ffn" or (
        structures == "auto" and shape.family not in FIXED_HEADS
    )


def check_order(order: str) -> None:
    """Refuse an order that is none.

    Raises:
        RecipeError: naming the value and what is allowed.
    """
    if order not in get_args(Order):
        raise RecipeError(f"order must be one of {', '.join(get_args(Order))}, got {order!r}")


def ranks_between(least: int, most: int, part: Floats) -> Ints:
    """Return powers of two times `least`, at most `most`, evenly in the logarithm.

    >>> ranks_between(1, 8, np.array([0.0, 0.3, 0.7, 1.0])).tolist()
    [1, 2, 4, 8]
    """
    steps = np.floor(part * math.log2(most / least) + 0.5)
    return np.minimum(least * 2.0**steps, most).astype(np.int64)


def check_min_rank(least: int) -> None:
    """Refuse a smallest rank of nothing; `Method.ranks` holds it against the recipe's `lora.r`.

    Raises:
        RecipeError: naming it.
    """
    if least < 1:
        raise RecipeError(f"min_rank must be at least 1, got {least}")
