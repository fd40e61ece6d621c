"""Cumulative pruning: what devices and the server keep from round to round."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.errors import ModelError
from airtune.model.aggregate import aggregate
from airtune.model.cumulative import blended, global_kept, narrowed
from airtune.model.importance import Importance, Means
from airtune.model.kept import Kept, keep_all
from airtune.model.lora import init_adapters, take
from airtune.model.state import GlobalState, Update
from airtune.model.update import check_update
from airtune.plan import AggregateSpec

SHRINK = AggregateSpec("factored", shrinks=True, memory=0.5)


@pytest.fixture
def shape(make_base):
    return make_base("llama").shape


def scores_of(shape, seed=0):
    draw = np.random.default_rng(seed)
    return Importance(
        draw.random((shape.blocks, shape.kv_groups)), draw.random((shape.blocks, shape.ffn))
    )


def update_of(shape, state, device, channels, *, scores=None, groups=2):
    kept = narrowed(keep_all(shape), scores_of(shape, device), groups=groups, channels=channels)
    adapters = take(state.adapters, shape, kept, 4)
    return Update(device, 0, kept, 4, adapters, {}, 1, scores)


def unknown_outside(scores, kept):
    groups, channels = np.full_like(scores.groups, np.nan), np.full_like(scores.channels, np.nan)
    for block, (group, channel) in enumerate(zip(kept.groups, kept.channels, strict=True)):
        groups[block, group] = scores.groups[block, group]
        channels[block, channel] = scores.channels[block, channel]
    return Importance(groups, channels)


@given(
    seed=st.integers(0, 999), first=st.integers(2, 48), over=st.sampled_from(["layers", "model"])
)
@settings(max_examples=40, deadline=None)
def test_pruning_on_keeps_a_subset_of_what_was_left(seed, first, over):
    draw = np.random.default_rng(seed)
    scores = Importance(draw.random((3, 4)), draw.random((3, 48)))
    whole = Kept((np.arange(4),) * 3, (np.arange(48),) * 3)
    once = narrowed(whole, scores, groups=3, channels=first, over=over)
    later = Importance(draw.random((3, 4)), draw.random((3, 48)))
    twice = narrowed(once, later, groups=2, channels=first // 2, over=over)
    for kind in ("groups", "channels"):
        for small, large in zip(getattr(twice, kind), getattr(once, kind), strict=True):
            assert len(small)
            assert set(small) <= set(large)
            assert np.all(np.diff(small) > 0)
    assert sum(map(len, twice.channels)) == 3 * (first // 2)


def test_over_the_model_the_strong_block_keeps_more():
    scores = Importance(np.ones((2, 2)), np.array([[9.0, 8.0, 7.0, 6.0], [1.0, 2.0, 0.5, 0.1]]))
    whole = Kept((np.arange(2),) * 2, (np.arange(4),) * 2)
    kept = narrowed(whole, scores, groups=2, channels=2.5, over="model")
    assert [row.tolist() for row in kept.channels] == [[0, 1, 2, 3], [1]]


def test_what_was_pruned_never_comes_back(shape):
    scores = scores_of(shape)
    once = narrowed(keep_all(shape), scores, groups=1, channels=10)
    with pytest.raises(ModelError, match="between 1 and the 10 that are left, got 11"):
        narrowed(once, scores, groups=1, channels=11)
    with pytest.raises(ModelError, match="between 1 and"):
        narrowed(once, scores, groups=0, channels=5)


def test_a_devices_own_scores_count_with_their_share_where_known():
    own = Importance(np.array([[1.0, np.nan]]), np.array([[2.0, 4.0]]))
    pooled = Importance(np.array([[3.0, 5.0]]), np.array([[6.0, np.nan]]))
    mixed = blended(own, pooled, 0.25)
    np.testing.assert_allclose(mixed.groups, [[2.5, 5.0]])
    np.testing.assert_allclose(mixed.channels, [[5.0, 4.0]])
    assert blended(own, pooled, 0.0) is pooled


def test_the_server_keeps_as_much_as_the_least_pruned_update(shape, workload_of):
    state = GlobalState(0, init_adapters(shape, workload_of(shape), 0), {}, scores_of(shape))
    updates = [update_of(shape, state, device, size) for device, size in ((0, 20), (1, 31))]
    after = aggregate(SHRINK, state, updates, [0.5, 0.5], shape=shape)
    assert {len(row) for row in after.kept.channels} == {31}
    assert after.devices[0].kept == updates[0].kept
    assert after.devices[1].kept == updates[1].kept
    later = aggregate(SHRINK, after, updates[:1], [1.0], shape=shape)
    assert {len(row) for row in later.kept.channels} == {20}
    assert later.devices.keys() == {0, 1}


def test_a_structure_survives_as_long_as_one_device_has_it(shape, workload_of):
    state = GlobalState(0, init_adapters(shape, workload_of(shape), 0), {}, scores_of(shape))
    updates = [update_of(shape, state, device, 24) for device in (0, 1)]
    only_one = set(updates[1].kept.channels[0]) - set(updates[0].kept.channels[0])
    lone = min(only_one)
    before = state.adapters["0.up_proj.B"].clone()
    updates[1].adapters["0.up_proj.B"].fill_(1.0)
    after = aggregate(
        AggregateSpec("average", shrinks=True), state, updates, [0.5, 0.5], shape=shape
    )
    assert torch.all(before[lone] == 0)
    torch.testing.assert_close(after.adapters["0.up_proj.B"][lone], torch.ones(4))


def test_pooled_scores_count_a_removed_structure_as_zero_and_remember(shape, workload_of):
    means = Means(np.zeros((shape.blocks, 32)), np.zeros((shape.blocks, shape.ffn)))
    old = replace(scores_of(shape, 9), means=means)
    state = GlobalState(0, init_adapters(shape, workload_of(shape), 0), {}, old)
    updates = []
    for device in (0, 1):
        plain = update_of(shape, state, device, 24)
        scores = unknown_outside(scores_of(shape, 5 + device), plain.kept)
        updates.append(replace(plain, importance=scores))
    after = aggregate(SHRINK, state, updates, [0.25, 0.75], shape=shape)
    fresh = sum(
        weight * np.nan_to_num(update.importance.channels)
        for weight, update in zip([0.25, 0.75], updates, strict=True)
    )
    np.testing.assert_allclose(after.importance.channels, 0.5 * old.channels + 0.5 * fresh)
    assert after.importance.means is means
    order = np.argsort(-after.importance.channels, axis=1, kind="stable")[:, :24]
    assert np.array_equal(after.kept.channels[1], np.sort(order[1]))


def test_nothing_pruned_leaves_the_model_whole(shape, workload_of):
    state = GlobalState(0, init_adapters(shape, workload_of(shape), 0), {})
    dense = update_of(shape, state, 0, shape.ffn, groups=shape.kv_groups)
    assert global_kept([dense], None, shape) is None
    with pytest.raises(ModelError, match="no importance was measured"):
        global_kept([update_of(shape, state, 0, 5)], None, shape)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            lambda scores: replace(scores, channels=scores.channels[:, 1:]),
            "importance of channels must",
        ),
        (
            lambda scores: replace(scores, groups=scores.groups * np.nan),
            "groups that it kept is not",
        ),
    ],
)
def test_importance_that_cannot_be_is_refused(shape, workload_of, fault, message):
    state = GlobalState(0, init_adapters(shape, workload_of(shape), 0), {})
    update = update_of(shape, state, 3, 10, scores=fault(scores_of(shape)))
    with pytest.raises(ModelError, match=f"device 3.*{message}"):
        check_update(update, state, shape)
