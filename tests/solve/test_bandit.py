"""The bandit finds what suits devices it was told nothing about."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.solve.bandit import Bandit, BanditSettings, behave_alike, choose, learn, refine, start

BEST = np.array([[0.15, 0.85], [0.5, 0.5], [0.85, 0.2]])
"""What suits each of three kinds of device."""


def pays(point, kind):
    return np.clip(1.0 - 1.5 * ((point - BEST[kind]) ** 2).sum(axis=1), 0.0, 1.0)


def play(seed, *, groups, rounds=60, devices=80, drift_at=None):
    """Mean reward over the last half, without the noise."""
    generator = np.random.default_rng(seed)
    kind = generator.integers(3, size=devices)
    bandit, dials, gained = start(devices), BanditSettings(), []
    for round_ in range(rounds):
        if round_ == drift_at:
            kind = (kind + 1) % 3
        group = groups(kind, generator)
        everything = np.ones((devices, bandit.depth.size), np.bool_)
        box = choose(bandit, group, dials, allowed=everything, generator=generator)
        reward = pays(bandit.centre[box], kind)
        seen = np.clip(reward + generator.normal(0, 0.05, devices), 0, 1)
        bandit = learn(bandit, group, dials, box=box, reward=seen)
        gained.append(reward.mean())
    return float(np.mean(gained[rounds // 2 :]))


def alike(kind, generator):
    return behave_alike(np.exp(kind + generator.normal(0, 0.1, kind.size)), 3)


def private(kind, generator):
    return np.arange(kind.size)


@pytest.mark.parametrize("seed", range(5))
def test_pooled_over_devices_that_behave_alike_it_beats_random_and_the_best_fixed_arm(seed):
    kind = np.random.default_rng(seed).integers(3, size=80)
    grid = np.stack(np.meshgrid(np.linspace(0.05, 0.95, 19), np.linspace(0.05, 0.95, 19)), -1)
    fixed = max(pays(np.tile(arm, (80, 1)), kind).mean() for arm in grid.reshape(-1, 2))
    random = pays(np.random.default_rng(seed).random((20_000, 2)), np.resize(kind, 20_000)).mean()
    pooled = play(seed, groups=alike)
    assert pooled > fixed + 0.03
    assert pooled > random + 0.2
    assert pooled > 0.95


def test_private_bandits_learn_less_in_the_same_rounds():
    assert play(0, groups=private) < play(0, groups=alike) - 0.02


def test_it_recovers_when_devices_change():
    assert play(1, groups=alike, rounds=120, drift_at=60) > 0.85


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_the_boxes_always_tile_the_square_and_memory_is_conserved(seed):
    generator = np.random.default_rng(seed)
    bandit, dials = start(6), BanditSettings(split_after=2.0)
    for _ in range(12):
        box = generator.integers(-1, bandit.depth.size, size=6)
        bandit = learn(bandit, np.arange(6), dials, box=box, reward=generator.random(6))
    assert np.prod(bandit.high - bandit.low, axis=1).sum() == pytest.approx(1.0)
    weight = sum(0.98**age for age in range(12))
    assert bandit.trials.sum() <= 6 * weight + 1e-9
    assert np.all(bandit.reward <= bandit.trials + 1e-9)


def test_refining_keeps_every_mean():
    bandit = Bandit(
        *(array for array in (start(1).low, start(1).high, start(1).depth)),
        trials=np.array([[30.0, 1.0, 1.0, 1.0]]),
        reward=np.array([[15.0, 1.0, 0.0, 0.5]]),
    )
    split = refine(bandit, BanditSettings())
    assert split.depth.size == 5
    np.testing.assert_allclose(split.reward[0, [0, 4]] / split.trials[0, [0, 4]], 0.5)


def test_a_device_never_plays_what_it_may_not():
    bandit, dials, group = start(1), BanditSettings(), np.zeros(3, np.int64)
    whole = BanditSettings(split_after=np.inf)
    allowed = np.array([[True, False, True, False]] * 3)
    for seed in range(20):
        generator = np.random.default_rng(seed)
        box = choose(bandit, group, dials, allowed=allowed, generator=generator)
        assert np.all(allowed[np.arange(3), box])
        bandit = learn(bandit, group, whole, box=box, reward=generator.random(3))


def test_devices_not_yet_seen_join_the_middle_group():
    assert behave_alike(np.array([np.nan, 1.0, 2.0, 8.0]), 3)[0] == 1
    assert behave_alike(np.full(4, np.nan), 3).tolist() == [1, 1, 1, 1]
