from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.cost.shapes import llama_like
from airtune.errors import ModelError
from airtune.model.importance import Importance, Means, measure
from airtune.model.kept import axis_index, check_kept, removed_index
from airtune.model.loss import class_logits
from airtune.model.mending import Mending, biased_layers
from airtune.model.slicing import Kept, choose_kept, keep_all, slice_network
from airtune.model.weights import shape_of

SHAPE = llama_like(
    "llama", blocks=2, width=16, heads=4, kv_groups=4, head_dim=4, ffn=12, vocab=11, tied=True
)


def logits(base, network, batch):
    if base.shape.labels:
        return class_logits(network, batch)
    return network(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


def put(module, inputs, *, removed, fill):
    x = inputs[0].clone()
    x[..., removed] = fill
    return (x,)


def masked_logits(base, kept, batch, means=None):
    """The dense network with removed inputs of the output projections put to their mean."""
    handles = []
    for block in range(base.shape.blocks):
        for name, axis in (
            (base.family.attention_output, "query"),
            (base.family.ffn_output, "ffn"),
        ):
            removed = removed_index(base.shape, axis, kept, block)
            if removed is None:
                continue
            fill = 0.0
            if means is not None:
                mean = (means.attention if axis == "query" else means.ffn)[block][removed]
                fill = torch.from_numpy(mean).float()

            hook = partial(put, removed=torch.from_numpy(removed), fill=fill)
            module = base.family.linear(base.network, block, name)
            handles.append(module.register_forward_pre_hook(hook))
    try:
        return logits(base, base.network, batch)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("mend", ["none", "mean"])
def test_masked_and_sliced_agree_with_uneven_counts(base, make_batch, uneven_kept, mend):
    batch, kept = make_batch(base), uneven_kept(base.shape)
    means = None if mend == "none" else measure(base.network, base.shape, [batch]).means
    mending = means and Mending(means, biased=biased_layers(base, saved=False))
    sliced = slice_network(base, kept, mending=mending)
    real = batch.attention_mask.bool() if not base.shape.labels else slice(None)
    expected = masked_logits(base, kept, batch, means)[real]
    assert not torch.allclose(expected, logits(base, base.network, batch)[real], atol=1e-3)
    torch.testing.assert_close(logits(base, sliced, batch)[real], expected, atol=1e-5, rtol=0)


def test_the_base_is_untouched_and_whole_tensors_are_shared(base, make_batch, uneven_kept):
    batch = make_batch(base)
    before = logits(base, base.network, batch)
    sliced = slice_network(base, uneven_kept(base.shape))
    assert torch.equal(before, logits(base, base.network, batch))
    assert sliced.get_input_embeddings().weight is base.network.get_input_embeddings().weight
    whole = slice_network(base, keep_all(base.shape))
    pairs = zip(whole.parameters(), base.network.parameters(), strict=True)
    assert all(one is other for one, other in pairs)


def test_parameters_left_are_those_the_shape_prices(base, uneven_kept):
    kept = uneven_kept(base.shape)
    left = sum(item.numel() for item in slice_network(base, kept).parameters())
    blocks = sum(
        int(base.shape.block_parameters(len(groups), len(channels)))
        for groups, channels in zip(kept.groups, kept.channels, strict=True)
    )
    rest = base.shape.embedding_parameters + base.shape.head_parameters
    assert left == blocks + rest


def test_sliced_layers_have_the_priced_sizes(base, uneven_kept):
    kept = uneven_kept(base.shape)
    sliced = slice_network(base, kept)
    for linear in base.shape.linears:
        columns, rows = base.shape.linear_sizes(linear, len(kept.groups[1]), len(kept.channels[1]))
        assert shape_of(base.family.linear(sliced, 1, linear.name)) == (rows, columns)


scores = st.integers(0, 2**31).map(lambda seed: np.random.default_rng(seed))


@settings(max_examples=30, deadline=None)
@given(draw=scores, heavy=st.integers(1, 12), light=st.integers(1, 12))
def test_heavier_pruning_keeps_a_subset(draw, heavy, light):
    heavy, light = sorted((heavy, light))
    importance = Importance(draw.integers(0, 3, (2, 4)) * 1.0, draw.integers(0, 3, (2, 12)) * 1.0)
    few = choose_kept(importance, SHAPE, max(heavy // 3, 1), heavy)
    many = choose_kept(importance, SHAPE, max(light // 3, 1), light)
    check_kept(few, SHAPE)
    for less, more in zip(few.groups + few.channels, many.groups + many.channels, strict=True):
        assert set(less) <= set(more)


def test_the_best_scores_are_kept():
    channels = np.tile(np.arange(12.0), (2, 1))
    groups = np.tile([3.0, 0.0, 2.0, 1.0], (2, 1))
    kept = choose_kept(Importance(groups, channels), SHAPE, 2, 3)
    assert [row.tolist() for row in kept.groups] == [[0, 2], [0, 2]]
    assert [row.tolist() for row in kept.channels] == [[9, 10, 11]] * 2


def test_a_group_is_its_query_heads_and_its_key_value_head():
    shape = llama_like(
        "llama", blocks=1, width=16, heads=4, kv_groups=2, head_dim=4, ffn=3, vocab=11, tied=True
    )
    kept = Kept((np.array([1]),), (np.array([0, 2]),))
    assert axis_index(shape, "query", kept, 0).tolist() == list(range(8, 16))
    assert axis_index(shape, "kv", kept, 0).tolist() == list(range(4, 8))
    assert axis_index(shape, "ffn", kept, 0).tolist() == [0, 2]
    assert axis_index(shape, "width", kept, 0) is None


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "kept groups of block 0 must be 1 to 4 rising indices below 4, got"),
        ([0, 0], "rising indices"),
        ([2, 1], "rising indices"),
        ([0, 4], "rising indices below 4"),
        ([-1, 2], "rising indices"),
    ],
)
def test_indices_that_do_not_fit_are_refused(groups, message):
    rows = (np.array(groups, np.int64),) * 2
    with pytest.raises(ModelError, match=message):
        check_kept(Kept(rows, keep_all(SHAPE).channels), SHAPE)


def test_a_missing_block_is_refused():
    whole = keep_all(SHAPE)
    with pytest.raises(ModelError, match="kept channels must cover 2 blocks, got 1"):
        check_kept(Kept(whole.groups, whole.channels[:1]), SHAPE)


def test_counts_and_scores_are_checked():
    fair = Importance(np.ones((2, 4)), np.ones((2, 12)))
    with pytest.raises(ModelError, match="groups to keep must be between 1 and 4, got 0"):
        choose_kept(fair, SHAPE, 0, 3)
    with pytest.raises(ModelError, match="channels to keep must be between 1 and 12, got 13"):
        choose_kept(fair, SHAPE, 1, 13)
    broken = Importance(np.full((2, 4), np.nan), np.ones((2, 12)))
    with pytest.raises(ModelError, match="importance must be finite"):
        choose_kept(broken, SHAPE, 2, 3)


def test_equal_slices_are_equal_and_have_one_key(uneven_kept):
    one, other = uneven_kept(SHAPE), uneven_kept(SHAPE)
    assert one == other
    assert len({one, other, keep_all(SHAPE)}) == 2


def test_means_replace_exactly_what_is_constant(make_base, make_batch):
    base = make_base("llama")
    kept = Kept((np.array([0, 1]),) * 2, (np.arange(1, 48),) * 2)
    down = base.family.linear(base.network, 0, "down_proj")
    zeros = np.zeros((2, 32))
    means = Means(zeros, np.tile(np.eye(48)[0], (2, 1)))
    mending = Mending(means, biased=frozenset({"down_proj"}))
    bias = base.family.linear(slice_network(base, kept, mending=mending), 0, "down_proj").bias
    torch.testing.assert_close(bias, down.weight[:, 0])
