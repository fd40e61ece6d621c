"""Plans at a quantile: of late and scattered reports, the stated part of rounds ends as planned."""

from types import SimpleNamespace

import numpy as np
import pytest

from airtune.methods.margin import expecting, no_reports, reported, times_longer


def played(quantile, scatter, rounds, *, seed=0, late=0.0, drift=0.0):
    """Return, for each round, whether it ended as planned, and the margins at the end."""
    draw, device = np.random.default_rng(seed), np.arange(len(scatter))
    state, expected_s = no_reports(len(scatter), quantile), np.full(len(scatter), 10.0)
    bias, held = np.full(len(scatter), late), []
    for _ in range(rounds):
        longer = times_longer(state, device)
        state = expecting(state, device, expected_s, float(np.max(expected_s * longer)))
        bias += drift * draw.normal(size=bias.size)
        took = expected_s * np.exp(bias + scatter * draw.standard_t(4, size=bias.size))
        held.append(took.max() <= state["planned_s"])
        came = SimpleNamespace(device=device, finish_s=took, status=np.full(bias.size, "ok"))
        state = reported(state, came, quantile)
    return np.array(held), times_longer(state, device)


@pytest.mark.parametrize("quantile", [0.8, 0.95])
@pytest.mark.parametrize(("late", "drift"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.03)])
def test_the_stated_part_of_rounds_ends_as_planned(quantile, late, drift):
    # tails are heavier than the normal ones that the first margins assume
    held, _ = played(quantile, np.full(10, 0.1), 600, late=late, drift=drift)
    assert held[100:].mean() == pytest.approx(quantile, abs=0.03)


def test_who_scatters_more_gets_more_time():
    _, longer = played(0.95, np.array([0.02, 0.02, 0.3]), 200)
    assert longer[2] > 1.3 * longer[:2].max()


def test_the_first_margin_is_that_of_a_round_of_independent_normal_reports():
    draw = np.random.default_rng(0)
    state = no_reports(40, 0.95)
    longest = np.exp(0.1 * draw.normal(size=(4000, 40))).max(axis=1)
    within = np.mean(longest <= times_longer(state, np.arange(40))[0])
    assert within == pytest.approx(0.95, abs=0.02)


def test_a_device_that_never_reports_keeps_what_is_declared_of_it():
    state = expecting(no_reports(2, 0.95), np.arange(2), np.array([10.0, 10.0]), 12.0)
    came = SimpleNamespace(
        device=np.arange(2), finish_s=np.array([20.0, np.nan]), status=np.array(["ok", "failed"])
    )
    after = reported(state, came, 0.95)
    assert after["late_log"].tolist()[1] == 0.0
    assert after["late_log"][0] == pytest.approx(np.log(2.0) / 2)
    assert after["late_reports"].tolist() == [1, 0]
