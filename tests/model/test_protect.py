"""One device cannot spoil a round: clipping, trimmed mean, krum; noise of the size that was asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from airtune.cost.shapes import llama_like
from airtune.errors import ModelError, TrainingError
from airtune.model.aggregate import aggregate
from airtune.model.kept import Kept, keep_all
from airtune.model.lora import init_adapters, take
from airtune.model.rules.robust import krum
from airtune.model.state import GlobalState, Update
from airtune.plan import AggregateSpec, Workload

KRUM = AggregateSpec("krum", liars=1)
SHAPE = llama_like(
    "llama", blocks=2, width=16, heads=4, kv_groups=2, head_dim=4, ffn=12, vocab=11, tied=True
)
WORK = Workload(
    batch=1,
    tokens=4,
    local_steps=1,
    rank=3,
    lora_targets=tuple(linear.name for linear in SHAPE.linears),
)


def noise(tensors, size, seed):
    stream = torch.Generator().manual_seed(seed)
    return {k: v + size * torch.randn(v.shape, generator=stream) for k, v in tensors.items()}


@pytest.fixture
def state():
    return GlobalState(0, init_adapters(SHAPE, WORK, 0), {"head.weight": torch.ones(2, 3)})


def update_of(device, state, size=0.01, *, kept=None, rank=3):
    kept = keep_all(SHAPE) if kept is None else kept
    adapters = noise(take(state.adapters, SHAPE, kept, rank), size, device)
    return Update(device, 0, kept, rank, adapters, noise(state.head, size, device + 100), 5)


def moved(state, after):
    pairs = [(after.adapters[k], v) for k, v in state.adapters.items()]
    pairs += [(after.head[k], v) for k, v in state.head.items()]
    return float(torch.cat([(a - b).flatten() for a, b in pairs]).norm())


def go(spec, state, updates, weights=None):
    return aggregate(spec, state, updates, weights or [1.0] * len(updates), shape=SHAPE)


def test_a_huge_update_moves_the_state_no_further_than_its_clipped_share(state):
    honest, huge = update_of(0, state), update_of(1, state, 1e6)
    spec = AggregateSpec(clip_norm=0.5)
    assert moved(state, go(spec, state, [huge])) == pytest.approx(0.5, rel=1e-4)
    assert moved(state, go(spec, state, [honest, huge])) < 0.75


def test_an_update_within_the_norm_is_left_as_it_is(state):
    updates = [update_of(0, state), update_of(1, state)]
    plain, clipped = (go(AggregateSpec(clip_norm=c), state, updates) for c in (0.0, 1e3))
    assert all(torch.equal(v, clipped.adapters[k]) for k, v in plain.adapters.items())


def test_a_pruned_update_of_lower_rank_is_clipped_from_its_own_slice(state):
    kept = Kept(
        tuple(np.array([1]) for _ in range(2)), tuple(np.arange(0, 12, 2) for _ in range(2))
    )
    after = go(AggregateSpec(clip_norm=0.25), state, [update_of(0, state, 1e3, kept=kept, rank=2)])
    held = take(state.adapters, SHAPE, kept, 2)
    assert moved(
        replace(state, adapters=held), replace(after, adapters=take(after.adapters, SHAPE, kept, 2))
    ) == pytest.approx(0.25, rel=1e-4)


def test_a_trimmed_mean_is_that_of_the_values_between(state):
    updates = [update_of(i, state) for i in range(5)] + [update_of(9, state, 1e6)]
    after = go(AggregateSpec("trimmed-mean", trim=0.2), state, updates)
    for name, tensor in after.adapters.items():
        stacked = np.sort(np.stack([u.adapters[name].double().numpy() for u in updates]), 0)
        np.testing.assert_allclose(tensor, stacked[1:-1].mean(0), rtol=1e-5, atol=1e-7)
    assert moved(state, after) < moved(state, go(AggregateSpec(), state, updates)) / 1e4


def test_krum_leaves_out_the_liar_and_needs_enough_honest(state):
    updates = [update_of(i, state) for i in range(4)] + [update_of(9, state, 5.0)]
    assert 4 not in krum(updates, KRUM)
    assert len(krum(updates, KRUM)) == 2
    assert moved(state, go(KRUM, state, updates)) < 1.0
    with pytest.raises(TrainingError, match="needs 5 updates"):
        krum(updates[:4], KRUM)


@pytest.mark.parametrize("rule", ["trimmed-mean", "krum", "average"])
def test_unlike_shapes_are_refused_where_numbers_are_compared(state, rule):
    kept = Kept(tuple(np.array([0]) for _ in range(2)), tuple(np.arange(12) for _ in range(2)))
    updates = [update_of(i, state) for i in range(5)]
    spec = AggregateSpec(rule, clip_norm=1.0, noise=1.0 if rule == "average" else 0.0)
    with pytest.raises(ModelError, match="device 7 is pruned"):
        go(spec, state, [*updates, update_of(7, state, kept=kept)])


def test_noise_has_the_size_that_was_asked_and_is_new_every_time(state):
    updates = [update_of(i, state, 0.0) for i in range(4)]
    spec = AggregateSpec(clip_norm=2.0, noise=3.0)
    one, two = go(spec, state, updates), go(spec, state, updates)
    count = sum(v.numel() for v in (*state.adapters.values(), *state.head.values()))
    assert moved(state, one) / count**0.5 == pytest.approx(2.0 * 3.0 / 4, rel=0.1)
    assert moved(one, two) > 0
