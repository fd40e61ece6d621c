import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from airtune.errors import InfeasibleError
from airtune.solve import Curves, divide_min_max


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 40),
    st.integers(0, 10**6),
    st.sampled_from([np.inf, 6.0]),
    st.sampled_from([(1, False), (3, False), (3, True)]),
)
def test_shares_fill_links_and_everybody_on_one_finishes_together(curves, n, seed, cap, kind):
    found = curves(n, seed, cap=cap, links=kind[0], mixed=kind[1])
    fixed = np.random.default_rng(seed).uniform(0, 20, n)
    division = divide_min_max(found, fixed, np.full(n, 4e7))
    assert division.status == "optimal"
    assert division.gap <= 1e-8
    for place in np.unique(found.link):
        shared = (found.link == place) & ~found.dedicated
        if shared.any():
            assert division.share[shared].sum() == pytest.approx(1.0, abs=1e-9)
            assert np.ptp(division.finish_s[shared]) <= 1e-4 * division.finish_s[shared].max()
    assert np.all(division.share[found.dedicated] == 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_a_general_solver(curves, seed):
    found, n = curves(4, seed), 4
    fixed, bits = np.linspace(0, 5, n), np.full(n, 4e7)
    division = divide_min_max(found, fixed, bits)

    def margin(z):
        return z[-1] - (fixed + bits / found.rate(np.maximum(z[:n], 1e-9)))

    start = np.append(np.full(n, 1 / n), (fixed + bits / found.rate(np.full(n, 1 / n))).max())
    answer = minimize(
        lambda z: z[-1],
        start,
        method="SLSQP",
        bounds=[(1e-6, 1)] * n + [(0, None)],
        constraints=[
            {"type": "ineq", "fun": margin},
            {"type": "ineq", "fun": lambda z: 1 - z[:n].sum()},
        ],
        options={"maxiter": 300, "ftol": 1e-12},
    )
    assert division.round_s <= answer.x[-1] * (1 + 1e-6)
    assert division.round_s == pytest.approx(answer.x[-1], rel=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(0, 10**6), st.floats(-9.0, 0.0))
def test_long_computing_before_it_does_not_change_the_division(curves, n, seed, scale):
    found = curves(n, seed)
    bits = np.random.default_rng(seed).uniform(1.0, 9.0, n) * 4e7 * 10.0**scale
    alone = divide_min_max(found, np.zeros(n), bits)
    after = divide_min_max(found, np.full(n, 3600.0), bits)
    assert after.status == "optimal"
    assert after.share == pytest.approx(alone.share, rel=1e-9)


def test_air_time_divides_by_bits_over_capacity():
    one = np.ones(3)
    capacity = np.array([1e6, 2e6, 4e6])
    air = Curves(np.zeros(3, int), one < 0, one, one * np.inf, capacity, one[:1])
    division = divide_min_max(air, np.zeros(3), one * 1e6)
    assert division.share == pytest.approx(np.array([4, 2, 1]) / 7)
    assert division.round_s == pytest.approx(1.75)


def test_a_single_device_gets_everything(curves):
    assert divide_min_max(curves(1, 0), np.zeros(1), np.ones(1) * 1e6).share[0] == 1.0


def test_nothing_to_send_is_refused(curves):
    with pytest.raises(InfeasibleError, match="device 1 of the division has a payload of 0 bit"):
        divide_min_max(curves(2, 0), np.zeros(2), np.array([1e6, 0.0]))
