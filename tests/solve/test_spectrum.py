import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from airtune.solve import Curves, divide_spectrum


def cell(n, seed, *, links=1):
    draws = np.random.default_rng(seed)
    curves = Curves(
        np.arange(n) % links,
        np.zeros(n, bool),
        10.0 ** draws.uniform(-2, 1, n),
        np.full(n, 10.0),
        np.full(n, np.inf),
        np.ones(links),
    )
    return curves, draws.uniform(0, 3, n), draws.uniform(1, 10, n)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 2))
def test_quadratic_steps_end_at_the_exact_division(seed, n, links):
    curves, fixed, bits = cell(n, seed, links=links)
    exact = divide_spectrum(curves, fixed, bits)
    stepped = divide_spectrum(curves, fixed, bits, "sqp")
    assert np.max(curves.load(stepped.share)) <= 1.0 + 1e-9
    assert exact.round_s * (1 - 1e-9) <= stepped.round_s <= exact.round_s * (1 + 1e-3)


def test_quadratic_steps_agree_with_slsqp():
    curves, fixed, bits = cell(6, 3)
    found = divide_spectrum(curves, fixed, bits, "sqp")
    answer = minimize(
        lambda v: v[-1],
        np.append(np.full(6, 1 / 6), 50.0),
        method="SLSQP",
        bounds=[(1e-4, 1.0)] * 6 + [(0, None)],
        constraints=[
            {"type": "ineq", "fun": lambda v: v[-1] - fixed - bits / curves.rate(v[:-1])},
            {"type": "ineq", "fun": lambda v: 1.0 - v[:-1].sum()},
        ],
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert found.round_s == pytest.approx(answer.x[-1], rel=1e-5)


@pytest.mark.parametrize("how", ["sqp", "equal"])
def test_other_rules_certify_nothing_and_are_never_better_than_the_bound(how):
    curves, fixed, bits = cell(20, 0)
    exact, other = divide_spectrum(curves, fixed, bits), divide_spectrum(curves, fixed, bits, how)
    assert np.isnan(other.bound_s)
    assert other.round_s >= exact.bound_s


def test_a_device_on_a_dedicated_link_keeps_all_of_it():
    curves, fixed, bits = cell(4, 1)
    mixed = Curves(
        np.array([0, 0, 0, 1]),
        np.array([False, False, False, True]),
        curves.signal,
        curves.scale,
        curves.cap,
        np.ones(2),
    )
    for how in ("exact", "sqp", "equal"):
        share = divide_spectrum(mixed, fixed, bits, how).share
        assert share[3] == 1.0
        assert share[:3].sum() == pytest.approx(1.0)
