"""Speeds are learnt from what devices report, and declared ones are a beginning."""

import numpy as np
import pytest

import airtune.engine.learnt as learning
from airtune.engine.learnt import START, LearntRatio
from airtune.errors import CheckpointError

ALL = np.arange(3)


def learnt(rounds: np.ndarray) -> LearntRatio:
    """Return what is learnt of three devices that report these seconds for a planned second."""
    speed = LearntRatio(3)
    for reported_s in rounds:
        speed.learn(ALL, np.ones(3), np.asarray(reported_s, np.float64))
    return speed


def test_nothing_is_known_beforehand_and_silence_teaches_nothing() -> None:
    assert LearntRatio(3).factor.tolist() == [1.0, 1.0, 1.0]
    assert learnt(np.full((4, 3), np.nan)).factor.tolist() == [1.0, 1.0, 1.0]
    assert learnt(np.zeros((4, 3))).factor.tolist() == [1.0, 1.0, 1.0]


def test_after_one_round_most_of_the_error_is_gone() -> None:
    factor = learnt(np.array([[0.5, 1.0, 2.0]])).factor
    np.testing.assert_allclose(factor, [2.0, 1.0, 0.5], rtol=0.05)


def test_noise_is_averaged_away() -> None:
    noise = np.exp(np.random.default_rng(0).normal(0.0, 0.05, (30, 3)))
    np.testing.assert_allclose(learnt(noise * [0.5, 1.0, 2.0]).factor, [2.0, 1.0, 0.5], rtol=0.06)


def test_one_odd_round_changes_little_and_two_are_a_change() -> None:
    steady = np.ones((10, 3))
    once = learnt(np.vstack([steady, [[1.0, 1.0, 3.0]]])).factor[2]
    twice = learnt(np.vstack([steady, [[1.0, 1.0, 3.0]] * 2])).factor[2]
    assert once > 0.7
    assert twice == pytest.approx(1 / 3, rel=0.05)


def test_it_is_the_filter_of_the_textbook(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as a Kalman filter written out with matrices, where nothing is odd and noise known."""
    monkeypatch.setattr(learning, "NEWEST", 0.0)
    reported = np.exp(np.random.default_rng(1).normal(0.2, 0.04, 12))
    state, covariance = np.zeros((1, 1)), np.array([[START**2]])
    for seconds in reported:
        covariance = covariance + np.array([[0.02**2]])
        gain = covariance @ np.linalg.inv(covariance + np.array([[0.05**2]]))
        state = state + gain @ (np.array([[np.log(1 / seconds)]]) - state)
        covariance = (np.eye(1) - gain) @ covariance
    found = learnt(np.repeat(reported[:, None], 3, 1)).factor
    np.testing.assert_allclose(found, np.exp(state[0, 0]), rtol=1e-12)


@pytest.mark.parametrize("noise", [0.03, 0.3])
def test_how_far_reports_scatter_is_learnt(noise: float) -> None:
    draw = np.random.default_rng(0)
    spread = [learnt(np.exp(draw.normal(0.0, noise, (60, 3)))).spread for _ in range(10)]
    assert np.median(spread) == pytest.approx(noise, rel=0.35)


def test_what_was_learnt_is_in_the_checkpoint() -> None:
    speed, again = learnt(np.array([[0.5, 1.0, 2.0]])), LearntRatio(3)
    again.restore(speed.snapshot())
    again.learn(ALL, np.ones(3), np.array([0.5, 1.0, 2.0]))
    speed.learn(ALL, np.ones(3), np.array([0.5, 1.0, 2.0]))
    np.testing.assert_array_equal(again.factor, speed.factor)
    with pytest.raises(CheckpointError, match="of 2 devices"):
        LearntRatio(2).restore(speed.snapshot())
