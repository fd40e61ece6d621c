import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from airtune.errors import ModelError
from airtune.model.importance import Importance, Means, measure, pool
from airtune.model.slicing import slice_network
from airtune.model.weights import weight_of


def inputs_of(base, batches, block, name):
    seen = []
    handle = base.family.linear(base.network, block, name).register_forward_pre_hook(
        lambda module, args: seen.append(args[0].detach())
    )
    backbone = base.network.get_submodule(base.family.backbone)
    rows = []
    for batch in batches:
        backbone(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        rows.append(seen.pop()[batch.attention_mask.bool()])
    handle.remove()
    return torch.cat(rows).double()


def test_fluctuation_is_variance_times_squared_column_norms(base, make_batch):
    batches = [make_batch(base, seed=seed, tokens=6 + seed) for seed in range(3)]
    found = measure(base.network, base.shape, batches)
    for block in range(base.shape.blocks):
        for name, scores, means in (
            (base.family.attention_output, found.groups, found.means.attention),
            (base.family.ffn_output, found.channels, found.means.ffn),
        ):
            rows = inputs_of(base, batches, block, name)
            norms = (
                weight_of(base.family.linear(base.network, block, name)).double().square().sum(0)
            )
            expected = rows.var(0, correction=0) * norms
            expected = expected.reshape(scores.shape[1], -1).sum(1)
            np.testing.assert_allclose(scores[block], expected / expected.mean(), rtol=1e-6)
            np.testing.assert_allclose(means[block], rows.mean(0), rtol=1e-5, atol=1e-7)


def test_magnitude_counts_every_weight_once(base):
    found = measure(base.network, base.shape, [], criterion="magnitude")
    assert found.means is None
    total = sum(
        float(weight_of(base.family.linear(base.network, 0, linear.name)).square().sum())
        for linear in base.shape.linears
        if "ffn" in (linear.in_axis, linear.out_axis)
    )
    sizes = [
        weight_of(base.family.linear(base.network, 0, linear.name)).square()
        for linear in base.shape.linears
        if "ffn" in (linear.in_axis, linear.out_axis)
    ]
    # the first channel's rows, one in each part of a fused layer, and its column
    ffn = base.shape.ffn
    first = sum(float((w[::ffn] if w.shape[0] % ffn == 0 else w[:, 0]).sum()) for w in sizes)
    assert found.channels[0, 0] == pytest.approx(first / total * base.shape.ffn, rel=1e-6)
    np.testing.assert_allclose(found.groups.mean(1), 1.0)


def test_random_scores_are_drawn_by_seed(base):
    one, again, other = (
        measure(base.network, base.shape, [], criterion="random", seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.groups, again.groups)
    assert not np.array_equal(one.channels, other.channels)


@pytest.mark.parametrize("criterion", ["fluctuation", "magnitude"])
def test_a_sliced_network_scores_what_it_has(base, make_batch, uneven_kept, criterion):
    kept = uneven_kept(base.shape)
    found = measure(
        slice_network(base, kept), base.shape, [make_batch(base)], criterion=criterion, kept=kept
    )
    for block in range(base.shape.blocks):
        assert (
            np.flatnonzero(~np.isnan(found.groups[block])).tolist() == kept.groups[block].tolist()
        )
        measured = np.flatnonzero(~np.isnan(found.means.ffn[block]))
        assert measured.tolist() == kept.channels[block].tolist()


def test_measuring_leaves_the_network_as_it_was(base, make_batch):
    base.network.train()
    measure(base.network, base.shape, [make_batch(base)])
    assert base.network.training
    linear = base.family.linear(base.network, 0, base.family.ffn_output)
    assert not linear._forward_pre_hooks
    base.network.eval()


def test_without_data_or_with_an_unknown_criterion_it_refuses(base):
    with pytest.raises(ModelError, match="fluctuation is measured on data and got no batch"):
        measure(base.network, base.shape, [])
    with pytest.raises(ModelError, match="importance 'taste' is not available; use fluctuation"):
        measure(base.network, base.shape, [], criterion="taste")


finite = st.floats(0.1, 10)


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(arrays(float, (2, 3), elements=finite), min_size=1, max_size=4),
    scale=st.floats(0.1, 10),
)
def test_pooling_is_a_mean_whatever_the_scale_of_the_weights(values, scale):
    items = [Importance(v, v, Means(v, v)) for v in values]
    weights = [scale * (place + 1) for place in range(len(items))]
    pooled = pool(items, weights)
    expected = np.average(values, axis=0, weights=weights)
    for found in (pooled.groups, pooled.channels, pooled.means.attention, pooled.means.ffn):
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_pooling_asks_those_who_measured():
    seen = Importance(np.array([[1.0, np.nan, np.nan]]), np.ones((1, 1)))
    also = Importance(np.array([[3.0, 5.0, np.nan]]), np.ones((1, 1)))
    pooled = pool([seen, also], [1.0, 1.0])
    np.testing.assert_array_equal(pooled.groups, [[2.0, 5.0, np.nan]])
    assert pooled.means is None
    with pytest.raises(ModelError, match="one weight a device, got 1 for 2 devices"):
        pool([seen, also], [1.0])
