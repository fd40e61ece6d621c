"""How much is pruned when: levels that end exactly at a sparsity, and the cubic schedule over rounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from airtune.errors import RecipeError
from airtune.plan import Floats, Ints, ModelShape, Problem

Structures = Literal["auto", "heads-and-ffn", "ffn"]

LEVELS = 16
"""Steps between dense and the final sparsity: few enough that devices share slices."""
TILE, TILED_FROM = 16, 1024
"""Channels that go together, in models with at least so many of them."""
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


def schedule_of(
    problem: Problem, *, warmup: float, cooldown: float, prune_every: int
) -> Schedule:  # fmt: skip
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


@lru_cache(maxsize=16)
def levels_of(shape: ModelShape, sparsity: float, structures: Structures) -> Levels:
    """Return the levels of a model on the way to a sparsity, the nearest whole structures to it.

    Wide models lose channels in tiles of `TILE`.
    Heads and channels fall in step; each level keeps a subset of what the one before keeps.

    Raises:
        RecipeError: if the sparsity would leave a block without a head or a channel.
    """
    groups, channels = _final(shape, sparsity, prunes_heads(shape, structures))
    part, tile = np.arange(LEVELS + 1) / LEVELS, _tile(shape)
    heads = np.floor(part * groups + 0.5) / shape.kv_groups
    ffn = np.floor(part * channels / tile + 0.5) * tile / shape.ffn
    return Levels(heads, ffn, shape.pruned_fraction(heads, ffn))


def prunes_heads(shape: ModelShape, structures: Structures) -> bool:
    """Return whether heads are pruned too: by default where the result can be saved plainly."""
    return structures == "heads-and-ffn" or (
        structures == "auto" and shape.family not in FIXED_HEADS
    )


def ranks_between(least: int, most: int, part: Floats) -> Ints:
    """Return powers of two times `least`, at most `most`, evenly in the logarithm.

    >>> ranks_between(1, 8, np.array([0.0, 0.3, 0.7, 1.0])).tolist()
    [1, 2, 4, 8]
    """
    steps = np.floor(part * math.log2(most / least) + 0.5)
    return np.minimum(least * 2.0**steps, most).astype(np.int64)


def check_ranks(least: int, most: int) -> None:
    """Refuse a smallest rank beyond the largest, which is the recipe's `lora.r`.

    Raises:
        RecipeError: naming both.
    """
    if not 1 <= least <= most:
        raise RecipeError(
            f"min_rank must be between 1 and lora.r, which is {most}, got {least}; raise lora.r or "
            "lower method.min_rank"
        )


def _tile(shape: ModelShape) -> int:
    """Return the step in which channels go: whole tiles of a processor where that costs no exactness.

    A matrix product of 384 columns is faster than one of 383; of 1024 channels on, a tile is less
    than 1.6 % of them.
    """
    return TILE if shape.ffn >= TILED_FROM and shape.ffn % TILE == 0 else 1


def _final(shape: ModelShape, sparsity: float, heads: bool) -> tuple[int, int]:
    """Return (groups, channels) that are gone at the end."""
    most = shape.kv_groups - 1 if heads else 0
    groups = min(math.floor(sparsity * shape.kv_groups + 0.5), most) if heads else 0
    by_heads = float(shape.pruned_fraction(groups / shape.kv_groups, 0.0))
    one = float(shape.pruned_fraction(0.0, 1.0 / shape.ffn))
    tile = _tile(shape)
    channels = max(math.floor((sparsity - by_heads) / one / tile + 0.5), 0) * tile
    if channels > shape.ffn - 1:
        reach = float(shape.pruned_fraction(most / shape.kv_groups, 1.0 - 1.0 / shape.ffn))
        what = "one head group and one FFN channel" if heads else "one FFN channel (heads stay)"
        raise RecipeError(
            f"sparsity {sparsity:g} would leave a block of this {shape.family} model without "
            f"{what}; the most is {reach:.3f}; lower method.sparsity"
        )
    return groups, channels
