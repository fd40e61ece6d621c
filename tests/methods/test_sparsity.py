"""Levels and schedule: exact at the end, never back, and clear about what cannot be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.cost import bert_like, known_shapes, llama_like
from airtune.cost.path import BLOCK, TILE
from airtune.errors import RecipeError
from airtune.methods.sparsity import (
    FIXED_HEADS,
    LEVELS,
    PruningTarget,
    Schedule,
    check_order,
    levels_of,
    prunes_heads,
    ranks_between,
)
from airtune.plan import Problem, Profiles, Workload

LLAMA = llama_like(
    "llama", blocks=3, width=64, heads=8, kv_groups=4, head_dim=8, ffn=172, vocab=60, tied=True
)


def problem_of(shape, sensitivity=None):
    nothing = Profiles(
        ("one",), np.ones(1), np.ones(1, np.int64), np.zeros(1, np.int64), None, None, None, None
    )
    work = Workload(1, 8, local_steps=1, rank=2, lora_targets=())
    return Problem(shape, nothing, work, rounds=1, seed=0, sensitivity=sensitivity)


def reached(shape, sparsity, structures, **choices):
    return levels_of(problem_of(shape), PruningTarget(sparsity, structures, **choices))


BERT = bert_like(
    "bert", blocks=2, width=48, heads=6, ffn=192, vocab=60, positions=64, types=2, labels=2
)


@given(
    rounds=st.integers(1, 200),
    warmup=st.floats(0, 0.5),
    cooldown=st.floats(0, 0.45),
    every=st.integers(1, 9),
)
@settings(max_examples=80, deadline=None)
def test_the_schedule_rises_and_ends_exactly_whatever_its_interval(rounds, warmup, cooldown, every):
    before = int(warmup * rounds)
    after = min(int(cooldown * rounds), rounds - before - 1)
    schedule = Schedule(rounds, before, after, every)
    floors = [schedule.floor(round) for round in range(rounds)]
    assert floors[-1] == LEVELS
    assert floors[rounds - after - 1] == LEVELS
    assert all(floor == 0 for floor in floors[:before])
    assert np.all(np.diff(floors) >= 0)


def test_the_schedule_is_the_cubic_of_the_papers():
    schedule = Schedule(100, 10, 20)
    for round in range(100):
        p = min(max((round + 1 - 10) / 70, 0.0), 1.0)
        exact = LEVELS * (1 - (1 - p) ** 3)
        assert exact - 1e-6 <= schedule.floor(round) < exact + 1


@given(sparsity=st.floats(0.05, 0.6), heads=st.sampled_from(["heads-and-ffn", "ffn"]))
@settings(max_examples=60, deadline=None)
def test_levels_only_ever_remove_and_the_last_is_the_nearest_to_the_sparsity(sparsity, heads):
    levels = reached(LLAMA, sparsity, heads)
    assert np.all(np.diff(levels.prune_heads) >= 0)
    assert np.all(np.diff(levels.prune_ffn) >= 0)
    assert levels.pruned[0] == 0.0
    one = float(LLAMA.pruned_fraction(0.0, 1 / LLAMA.ffn))
    assert abs(levels.pruned[-1] - sparsity) <= 0.5 * one + 1e-9


def test_wide_models_lose_channels_in_tiles_and_stay_near_the_sparsity():
    wide = bert_like(
        "bert", blocks=6, width=384, heads=12, ffn=1536, vocab=60, positions=64, types=2, labels=2
    )
    for sparsity in (0.1, 0.37, 0.5, 0.6):
        levels = reached(wide, sparsity, "auto")
        kept = np.array([int(wide.kept_channels(part)) for part in levels.prune_ffn])
        assert np.all(kept % TILE == 0)
        assert np.all(np.diff(kept) <= 0)
        assert abs(levels.pruned[-1] - sparsity) <= 0.01
    assert int(wide.kept_channels(reached(wide, 0.5, "auto").prune_ffn[-1])) == 384


def test_the_last_level_keeps_whole_blocks_of_quantised_files_where_that_is_near():
    wide = known_shapes()["llama-2-7b"]
    for sparsity in (0.3, 0.5):
        levels = reached(wide, sparsity, "auto")
        assert int(wide.kept_channels(levels.prune_ffn[-1])) % BLOCK == 0
        assert abs(levels.pruned[-1] - sparsity) <= 0.01


def test_an_order_that_is_none_is_refused():
    with pytest.raises(RecipeError, match="order must be one of measured, proportional, got 'x'"):
        check_order("x")


def test_heads_stay_where_a_plain_config_cannot_say_so():
    from airtune.model.families import FAMILIES

    assert {name for name, family in FAMILIES.items() if not family.any_head_count} == FIXED_HEADS
    assert prunes_heads(LLAMA, "auto")
    assert not prunes_heads(BERT, "auto")
    assert prunes_heads(BERT, "heads-and-ffn")
    assert np.all(reached(BERT, 0.4, "auto").prune_heads == 0.0)


def test_published_shapes_reach_half():
    for name in ("roberta-base", "llama-2-7b"):
        shape = {key.lower(): value for key, value in known_shapes().items()}[name]
        assert reached(shape, 0.5, "auto").pruned[-1] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("structures", ["ffn", "heads-and-ffn"])
def test_a_sparsity_that_empties_a_block_is_refused(structures):
    with pytest.raises(RecipeError, match=r"sparsity 0.99 would leave a block .*the most is 0\.\d"):
        reached(LLAMA, 0.99, structures)


@given(least=st.integers(1, 9), times=st.integers(1, 20), part=st.floats(0, 1))
def test_ranks_stay_between_the_smallest_and_the_largest(least, times, part):
    rank = int(ranks_between(least, least * times, np.array([part]))[0])
    assert least <= rank <= least * times
