"""What a round will take: the interval holds what it says, and what was measured is learnt."""

from dataclasses import replace

import numpy as np
import pytest

from airtune.cost import Prediction
from airtune.engine.forecast import Forecast, MeasuredRound, _last
from airtune.errors import CheckpointError
from airtune.plan import whole_model

NONE = np.full(3, np.nan)


def priced(compute_s, download_s=0.1, upload_s=0.2):
    parts = [np.full(3, part, np.float64) for part in (download_s, compute_s, upload_s)]
    zeros = np.zeros(3)
    return Prediction(*parts, sum(parts), zeros, zeros, zeros, zeros, zeros)


def told(*, cut=0):
    found = whole_model(np.arange(3), rank=4, local_steps=2, share=np.ones(3))
    return replace(found, cut=np.full(3, cut))


def test_the_last_of_several_has_the_quantiles_of_many_draws():
    mu, sigma = np.array([0.0, 0.4, 0.5]), np.array([0.5, 0.1, 0.3])
    draws = np.exp(np.random.default_rng(0).normal(mu, sigma, (200_000, 3))).max(1)
    assert _last(mu, sigma) == pytest.approx(np.quantile(draws, [0.1, 0.5, 0.9]), rel=0.01)


def play(rounds, *, noise, seed, true=(1.0, 2.0, 0.5), judges=False, shared=0.0):
    """Run a forecast against devices whose seconds scatter; return how often a round was inside."""
    draw, forecast, inside = np.random.default_rng(seed), Forecast(3), []
    for _ in range(rounds):
        plan = priced(draw.uniform(1.0, 3.0))
        expected = forecast.expect(told(), plan, is_judging=judges)
        scatter = np.exp(draw.normal(0.0, noise, (4, 3)) + draw.normal(0.0, shared))
        work_s = plan.compute_s * np.array(true) * scatter[0]
        down_s, up_s = plan.download_s * 3.0 * scatter[1], plan.upload_s * 0.5 * scatter[2]
        judging_s = 0.4 * scatter[3] if judges else NONE
        finish_s = work_s + down_s + up_s + np.nan_to_num(judging_s) + 0.1 * scatter[3]
        inside.append(expected.low_s <= finish_s.max() <= expected.high_s)
        seen = MeasuredRound(finish_s, down_s, work_s, up_s, judging_s, np.zeros(3))
        forecast.learn(told(), plan, seen, expected)
    return forecast, np.array(inside)


@pytest.mark.parametrize("noise", [0.1, *(noise for noise in (0.03, 0.3))])
@pytest.mark.parametrize("judges", [False, True])
def test_four_rounds_of_five_end_in_the_interval(noise, judges):
    found = [play(60, noise=noise, seed=seed, judges=judges)[1][10:].mean() for seed in range(12)]
    assert 0.7 <= np.mean(found) <= 0.95


def test_what_slows_all_devices_at_once_is_in_the_interval():
    found = [play(60, noise=0.05, seed=seed, shared=0.15)[1][10:].mean() for seed in range(12)]
    assert 0.7 <= np.mean(found) <= 0.95


def test_an_interval_is_no_wider_than_it_must_be():
    forecast, _ = play(40, noise=0.05, seed=1)
    expected = forecast.expect(told(), priced(2.0), is_judging=False)
    # the slowest computes 4 s, its way takes 0.4 s, and 0.1 s are the rest
    assert expected.middle_s == pytest.approx(4.5, rel=0.08)
    assert expected.high_s / expected.low_s < 1.3


def test_steps_of_a_split_are_learnt_as_a_whole():
    forecast, plan = Forecast(3), priced(1.0)
    for _ in range(8):
        work_s, finish_s = np.full(3, 1.0), np.full(3, 4.0)
        seen = MeasuredRound(finish_s, np.zeros(3), work_s, np.zeros(3), NONE, np.zeros(3))
        forecast.learn(told(cut=1), plan, seen)
    assert forecast.expect(told(cut=1), plan, is_judging=False).middle_s == pytest.approx(
        4, rel=0.1
    )


def test_devices_that_say_nothing_teach_nothing():
    forecast, before = Forecast(3), Forecast(3)
    forecast.learn(told(), priced(1.0), MeasuredRound(NONE, NONE, NONE, NONE, NONE, NONE))
    assert (forecast.speed.factor == before.speed.factor).all()
    assert forecast.expect(told(), priced(np.inf), is_judging=False) is None


def test_what_was_learnt_of_rounds_is_in_the_checkpoint():
    forecast, again = play(5, noise=0.1, seed=0)[0], Forecast(3)
    again.restore(forecast.snapshot())
    plan = priced(2.0)
    assert again.expect(told(), plan, is_judging=True) == forecast.expect(
        told(), plan, is_judging=True
    )
    with pytest.raises(CheckpointError, match="judging_s"):
        Forecast(3).restore({"rest_s": np.zeros((2, 3))})
