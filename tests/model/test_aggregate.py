import itertools
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.cost.shapes import gpt2_like, llama_like
from airtune.errors import ModelError, TrainingError
from airtune.model.aggregate import aggregate
from airtune.model.importance import Importance
from airtune.model.kept import Kept, keep_all
from airtune.model.lora import init_adapters, layer_names, scatter, take
from airtune.model.rules import RULES
from airtune.model.rules.products import A_ROW_NORM
from airtune.model.server import ServerOptimizer, advance
from airtune.model.state import GlobalState, Update
from airtune.plan import AggregateSpec, RoundPlan, Workload, whole_model
from airtune.plan.method import AggregateRule

LLAMA = llama_like(
    "llama", blocks=2, width=16, heads=4, kv_groups=2, head_dim=4, ffn=12, vocab=11, tied=True
)
GPT2 = gpt2_like(blocks=2, width=16, heads=4, ffn=12, vocab=11, positions=8)
EXACT = ["average", "norm-weighted", "factored", "lifted", "stacked"]
RANK = 6


def state_of(shape, seed=0, rank=RANK):
    workload = Workload(
        batch=1,
        tokens=4,
        local_steps=1,
        rank=rank,
        lora_targets=tuple(linear.name for linear in shape.linears),
    )
    return GlobalState(
        3, filled(init_adapters(shape, workload, seed), seed), {"head.weight": torch.ones(2, 3)}
    )


def filled(adapters, seed):
    stream = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=stream) for name, value in adapters.items()}


def random_kept(draw, shape):
    def rows(limit):
        count = int(draw.integers(1, limit + 1))
        return tuple(np.sort(draw.choice(limit, count, replace=False)) for _ in range(shape.blocks))

    return Kept(rows(shape.kv_groups), rows(shape.ffn))


def update_of(device, state, shape, *, kept=None, rank=RANK, seed=0):
    kept = keep_all(shape) if kept is None else kept
    adapters = filled(take(state.adapters, shape, kept, rank), seed + 100)
    return Update(
        device,
        state.round,
        kept,
        rank,
        adapters,
        {"head.weight": torch.full((2, 3), float(seed))},
        5,
    )


def updates_of(seed, state, shape, count=3, *, ranks=True):
    draw = np.random.default_rng(seed)
    return [
        update_of(
            device,
            state,
            shape,
            kept=random_kept(draw, shape),
            rank=int(draw.integers(1, RANK + 1)) if ranks else RANK,
            seed=seed + device,
        )
        for device in range(count)
    ]


def dense_mean(name, state, updates, weights, shape):
    """Reference: full matrices, each entry averaged over the devices that kept it."""
    total, cover = 0.0, 0.0
    for update, weight in zip(updates, weights, strict=True):
        ones = {key: torch.ones_like(value) for key, value in update.adapters.items()}
        full, held = scatter(update.adapters, shape, update.kept), scatter(ones, shape, update.kept)
        total = total + weight * product(full, name)
        cover = cover + weight * (product(held, name) > 0)
    return torch.where(cover > 0, total / cover, product(state.adapters, name))


def product(adapters, name):
    return adapters[f"{name}.B"].double() @ adapters[f"{name}.A"].double()


def best_of_rank(matrix, rank):
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank]


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), shape=st.sampled_from([LLAMA, GPT2]))
def test_factored_is_the_dense_mean_cut_to_the_rank(seed, shape):
    state = state_of(shape)
    updates, weights = updates_of(seed, state, shape), np.array([0.2, 0.5, 0.3])
    found = aggregate(AggregateSpec("factored"), state, updates, weights, shape=shape)
    for name in layer_names(state.adapters):
        expected = best_of_rank(dense_mean(name, state, updates, weights, shape), RANK)
        torch.testing.assert_close(product(found.adapters, name), expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), shape=st.sampled_from([LLAMA, GPT2]))
def test_lifted_adds_the_mean_change_to_what_was(seed, shape):
    state = state_of(shape)
    updates, weights = updates_of(seed, state, shape), np.array([0.2, 0.5, 0.3])
    starts = [
        replace(update, adapters=take(state.adapters, shape, update.kept, update.rank))
        for update in updates
    ]
    nothing = replace(state, adapters={k: torch.zeros_like(v) for k, v in state.adapters.items()})
    found = aggregate(AggregateSpec("lifted"), state, updates, weights, shape=shape)
    for name in layer_names(state.adapters):
        ended, began = (
            dense_mean(name, nothing, some, weights, shape) for some in (updates, starts)
        )
        expected = best_of_rank(product(state.adapters, name) + ended - began, RANK)
        torch.testing.assert_close(product(found.adapters, name), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
def test_lifted_keeps_the_directions_that_devices_of_low_rank_never_had(rank):
    state = state_of(LLAMA)
    sent = take(state.adapters, LLAMA, keep_all(LLAMA), rank)
    updates = [
        replace(update_of(device, state, LLAMA, rank=rank), adapters=sent) for device in (0, 1)
    ]
    kept = aggregate(AggregateSpec("lifted"), state, updates, [1.0, 1.0], shape=LLAMA)
    lost = aggregate(AggregateSpec("factored"), state, updates, [1.0, 1.0], shape=LLAMA)
    for name in layer_names(state.adapters):
        torch.testing.assert_close(
            product(kept.adapters, name), product(state.adapters, name), atol=1e-5, rtol=1e-5
        )
        assert torch.linalg.matrix_rank(product(lost.adapters, name)) <= rank


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), shape=st.sampled_from([LLAMA, GPT2]))
def test_stacking_merges_the_dense_mean_and_starts_afresh(seed, shape):
    state = state_of(shape)
    updates, weights = updates_of(seed, state, shape), np.array([0.2, 0.5, 0.3])
    found = aggregate(
        AggregateSpec("stacked"), state, updates, weights, shape=shape, scale=2.0, seed=1
    )
    for name in layer_names(state.adapters):
        expected = 2.0 * dense_mean(name, state, updates, weights, shape).float()
        torch.testing.assert_close(found.merged[name], expected, atol=1e-5, rtol=1e-5)
        assert not found.adapters[f"{name}.B"].any()
        assert found.adapters[f"{name}.A"].abs().max() <= 1 / np.sqrt(
            found.adapters[f"{name}.A"].shape[1]
        )
    twice = aggregate(
        AggregateSpec("stacked"), found, updates, weights, shape=shape, scale=2.0, seed=1
    )
    covered = [name for name in layer_names(state.adapters) if name.endswith("up_proj")]
    assert all(not torch.equal(twice.merged[name], found.merged[name]) for name in covered)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), shape=st.sampled_from([LLAMA, GPT2]))
def test_average_is_the_mean_over_those_who_kept_a_row_or_column(seed, shape):
    state = state_of(shape)
    updates, weights = updates_of(seed, state, shape), np.array([0.2, 0.5, 0.3])
    found = aggregate(AggregateSpec("average"), state, updates, 10 * weights, shape=shape)
    fulls = [scatter(update.adapters, shape, update.kept) for update in updates]
    ones = [
        scatter({k: torch.ones_like(v) for k, v in update.adapters.items()}, shape, update.kept)
        for update in updates
    ]
    for name in layer_names(state.adapters):
        for part, axis in (("A", 0), ("B", 1)):
            key = f"{name}.{part}"
            total = torch.zeros_like(state.adapters[key])
            cover = torch.zeros(total.shape[1 - axis])
            for full, held, weight in zip(fulls, ones, weights, strict=True):
                rank = full[key].shape[axis]
                total.narrow(axis, 0, rank).add_(weight * full[key])
                cover += weight * held[key].amax(axis)
            grid = cover[None, :] if axis == 0 else cover[:, None]
            expected = torch.where(grid > 0, total / grid, state.adapters[key])
            largest = max(full[key].shape[axis] for full in fulls)
            untrained = slice(largest, None) if axis == 0 else (slice(None), slice(largest, None))
            expected[untrained] = state.adapters[key][untrained]
            torch.testing.assert_close(found.adapters[key], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rule", EXACT)
def test_equal_updates_change_only_the_form(rule):
    state = state_of(LLAMA)
    update = update_of(0, state, LLAMA, seed=4)
    again = replace(update, device=1)
    found = aggregate(AggregateSpec(rule), state, [update, again], [1.0, 3.0], shape=LLAMA)
    assert found.round == 4
    assert torch.equal(found.head["head.weight"], torch.full((2, 3), 4.0))
    for name in layer_names(state.adapters):
        result = found.merged[name] if rule == "stacked" else product(found.adapters, name)
        torch.testing.assert_close(
            result.double(), product(update.adapters, name), atol=1e-5, rtol=1e-5
        )


def test_hetlora_with_equal_ranks_norms_and_shares_is_fedit():
    state = state_of(LLAMA)
    update = update_of(0, state, LLAMA, seed=1)
    negated = {name: -tensor for name, tensor in update.adapters.items()}
    mirrored = replace(update, device=1, adapters=negated)
    both = [update, mirrored]
    plain = aggregate(AggregateSpec("average"), state, both, [1, 1], shape=LLAMA)
    normed = aggregate(AggregateSpec("norm-weighted"), state, both, [1, 1], shape=LLAMA)
    for name in plain.adapters:
        torch.testing.assert_close(plain.adapters[name], normed.adapters[name])


def test_norm_weights_are_the_norms_of_the_products():
    state = state_of(LLAMA)
    updates = updates_of(2, state, LLAMA)
    norms = [
        sum(product(u.adapters, n).square().sum() for n in layer_names(u.adapters)).sqrt().item()
        for u in updates
    ]
    normed = aggregate(AggregateSpec("norm-weighted"), state, updates, [1, 9, 1], shape=LLAMA)
    by_hand = aggregate(AggregateSpec("average"), state, updates, norms, shape=LLAMA)
    for name in normed.adapters:
        torch.testing.assert_close(normed.adapters[name], by_hand.adapters[name])


@pytest.mark.parametrize("rule", EXACT)
def test_heads_count_by_data_under_every_rule(rule):
    state = state_of(LLAMA)
    heads = [
        replace(update, head={name: torch.full_like(t, place) for name, t in state.head.items()})
        for place, update in enumerate(updates_of(2, state, LLAMA))
    ]
    found = aggregate(AggregateSpec(rule), state, heads, [1.0, 2.0, 1.0], shape=LLAMA)
    assert torch.equal(found.head["head.weight"], torch.ones(2, 3))


@pytest.mark.parametrize("rule", ["average", "norm-weighted"])
def test_directions_beyond_the_largest_rank_of_a_round_go_on_living(rule):
    state = state_of(LLAMA)
    updates = [update_of(place, state, LLAMA, rank=2) for place in range(2)]
    found = aggregate(AggregateSpec(rule), state, updates, [1.0, 1.0], shape=LLAMA)
    for name in layer_names(state.adapters):
        assert torch.equal(found.adapters[f"{name}.A"][2:], state.adapters[f"{name}.A"][2:])
        assert torch.equal(found.adapters[f"{name}.B"][:, 2:], state.adapters[f"{name}.B"][:, 2:])


def test_what_nobody_kept_stays_as_it_was():
    state = state_of(LLAMA)
    kept = Kept((np.array([0]),) * 2, (np.arange(6),) * 2)
    update = update_of(0, state, LLAMA, kept=kept, seed=1)
    for rule in ("average", "norm-weighted"):
        found = aggregate(AggregateSpec(rule), state, [update], [1.0], shape=LLAMA)
        assert torch.equal(found.adapters["0.up_proj.B"][6:], state.adapters["0.up_proj.B"][6:])
        assert torch.equal(
            found.adapters["1.down_proj.A"][:, 6:], state.adapters["1.down_proj.A"][:, 6:]
        )


def test_no_direction_dies_when_products_are_zero():
    state = state_of(LLAMA)
    update = update_of(0, state, LLAMA)
    zero = {n: torch.zeros_like(t) if n.endswith("B") else t for n, t in update.adapters.items()}
    found = aggregate(
        AggregateSpec("factored"), state, [replace(update, adapters=zero)], [1.0], shape=LLAMA
    )
    for name in layer_names(state.adapters):
        norms = found.adapters[f"{name}.A"].norm(dim=1)
        torch.testing.assert_close(norms, torch.full_like(norms, A_ROW_NORM))
        assert product(found.adapters, name).abs().max() < 1e-6


@pytest.mark.parametrize("rule", ["factored", "lifted"])
def test_a_rank_above_what_a_layer_can_have_keeps_its_shape(rule):
    state = state_of(LLAMA, rank=12)  # keys are 8 wide
    updates = [update_of(device, state, LLAMA, rank=12, seed=device) for device in range(2)]
    found = aggregate(AggregateSpec(rule), state, updates, [1.0, 1.0], shape=LLAMA)
    for name in layer_names(state.adapters):
        assert found.adapters[f"{name}.A"].shape == state.adapters[f"{name}.A"].shape
        expected = best_of_rank(dense_mean(name, state, updates, [0.5, 0.5], LLAMA), 12)
        torch.testing.assert_close(product(found.adapters, name), expected, atol=1e-5, rtol=1e-5)


def test_importance_is_pooled_over_those_who_measured():
    state = state_of(LLAMA)
    score = Importance(np.full((2, 2), 2.0), np.full((2, 12), 2.0))
    updates = [update_of(0, state, LLAMA), replace(update_of(1, state, LLAMA), importance=score)]
    found = aggregate(AggregateSpec(), state, updates, [1, 1], shape=LLAMA)
    np.testing.assert_allclose(found.importance.groups, 2.0)
    unmeasured = aggregate(AggregateSpec(), state, updates[:1], [1], shape=LLAMA)
    assert unmeasured.importance is None


@pytest.mark.parametrize("rule", EXACT)
def test_the_state_given_is_untouched_and_nothing_is_random(rule):
    state = state_of(LLAMA)
    before = {name: tensor.clone() for name, tensor in state.adapters.items()}
    updates = updates_of(5, state, LLAMA)
    one, other = (
        aggregate(AggregateSpec(rule), state, updates, [1, 2, 3], shape=LLAMA) for _ in range(2)
    )
    assert all(torch.equal(before[name], state.adapters[name]) for name in before)
    assert all(torch.equal(one.adapters[name], other.adapters[name]) for name in before)


def broken(update, **changes):
    return replace(update, adapters=update.adapters | changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda u: broken(u, **{"0.q_proj.A": torch.zeros(2, 2)}), r"0.q_proj.A must be \(6, 16\)"),
        (lambda u: broken(u, **{"9.q_proj.A": torch.zeros(2, 2)}), r"9.q_proj.A must be absent"),
        (
            lambda u: broken(u, **{"0.q_proj.A": torch.full((6, 16), torch.nan)}),
            "0.q_proj.A holds NaN or infinity",
        ),
        (lambda u: replace(u, head={}), r"head.weight must be \(2, 3\) .* got nothing"),
        (lambda u: replace(u, rank=9), "rank must be between 1 and 6, got 9"),
        (
            lambda u: replace(u, kept=Kept((np.array([0, 7]),) * 2, u.kept.channels)),
            "kept groups of block 0 must be 1 to 2 rising indices",
        ),
    ],
)
def test_a_malformed_update_is_refused_by_its_device(change, message):
    state = state_of(LLAMA)
    update = change(update_of(7, state, LLAMA))
    with pytest.raises(ModelError, match=f"update of device 7: {message}"):
        aggregate(AggregateSpec(), state, [update], [1.0], shape=LLAMA)


def test_a_round_without_updates_or_with_wrong_weights_is_refused():
    state = state_of(LLAMA)
    with pytest.raises(TrainingError, match="no device returned a usable update"):
        aggregate(AggregateSpec(), state, [], [], shape=LLAMA)
    for weights in ([1.0, 2.0], [0.0], [np.nan]):
        with pytest.raises(ModelError, match="one positive weight for each of 1 updates"):
            aggregate(AggregateSpec(), state, [update_of(0, state, LLAMA)], weights, shape=LLAMA)


def test_every_rule_that_a_method_may_name_has_a_row():
    assert set(RULES) == set(get_args(AggregateRule))


@settings(max_examples=6)
@given(st.lists(st.tuples(st.floats(0.05, 1.0), st.floats(0.1, 1.0)), min_size=1, max_size=3))
def test_over_all_draws_of_who_is_asked_the_change_is_that_of_all_devices(devices):
    """Each device's weight and probability; the server's step is taken with what the plan stands for."""
    weight, probability = np.array(devices).T
    before = state_of(LLAMA)
    sent = [update_of(device, before, LLAMA, seed=device) for device in range(len(devices))]

    def after(here):
        told = whole_model(here, rank=RANK, local_steps=1, share=np.ones(here.size))
        told = replace(told, probability=probability[here])
        left = dict.fromkeys(np.setdiff1d(np.arange(len(devices)), here).tolist(), "not asked")
        plan = RoundPlan(0, told, ("",) * here.size, not_asked=left)
        found = aggregate(
            AggregateSpec("average"),
            before,
            [sent[one] for one in here],
            weight[here] * told.times(here),
            shape=LLAMA,
        )
        return advance(
            ServerOptimizer(),
            before,
            before,
            found,
            rule="average",
            stands_for=plan.stands_for(weight),
        )

    total = aggregate(AggregateSpec("average"), before, sent, weight, shape=LLAMA)
    expected = dict.fromkeys(total.adapters | total.head, 0.0)
    for is_asked in itertools.product([False, True], repeat=len(devices)):
        chance = float(np.prod(np.where(is_asked, probability, 1.0 - probability)))
        found = after(np.flatnonzero(is_asked)) if any(is_asked) else before
        for name, tensor in (found.adapters | found.head).items():
            expected[name] += chance * tensor.double()
    for name, everyone in (total.adapters | total.head).items():
        torch.testing.assert_close(expected[name], everyone.double(), atol=1e-4, rtol=1e-4)
