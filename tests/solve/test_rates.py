import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import lambertw

from airtune.errors import InfeasibleError
from airtune.fleet.rates import uplink_bps
from airtune.plan import LinkSpec, LinkState, RateModel
from airtune.solve import Curves, curves_of, signal_ratio, silent
from airtune.solve.rates import log_slope

SHANNON = RateModel()


def links(rate=SHANNON):
    return LinkState(
        specs=(
            LinkSpec("cell", "shared", 5e6, 5e6, rate, None),
            LinkSpec("air", "shared", 0.0, 0.0, RateModel(), None),
            LinkSpec("line", "dedicated", 0.0, 0.0, RateModel(), None),
        ),
        link=np.array([0, 0, 1, 2, 1]),
        up_signal_hz=np.array([3e6, 4e7, np.nan, np.nan, np.nan]),
        down_signal_hz=np.array([3e6, 4e7, np.nan, np.nan, np.nan]),
        up_capacity_bps=np.array([np.nan, np.nan, 8e6, 2e6, 0.0]),
        down_capacity_bps=np.array([np.nan, np.nan, 8e6, 2e6, 1e6]),
        available=np.ones(5, bool),
    )


@given(st.floats(1e-12, 0.999))
def test_signal_ratio_is_lamberts_lower_branch(fraction):
    found = signal_ratio(np.array([fraction]))[0]
    w = -lambertw(-fraction * np.exp(-fraction), -1).real
    assert found == pytest.approx(w / fraction - 1.0, rel=1e-6 if fraction > 0.9 else 1e-12)


@given(st.floats(1e-7, 1e25))
def test_signal_ratio_inverts_its_equation(u):
    fraction = np.log1p(u) / u
    # Near u = 0 the fraction itself holds u to only eps / u.
    assert signal_ratio(np.array([fraction]))[0] == pytest.approx(u, rel=1e-13 + 1e-15 / u)


def test_signal_ratio_at_its_ends():
    assert signal_ratio(np.array([0.0, 1.0, 2.0])).tolist() == [np.inf, 0.0, 0.0]


def test_weak_signals_keep_their_digits():
    for u in (1e-10, 1e-6, 5e-4, 9.9e-4, 1.1e-3):
        # alternating series of ln(1+u) - u/(1+u), summed far enough to be exact
        exact = sum((-1) ** k * u**k * (k - 1) / k for k in range(2, 12))
        assert log_slope(np.array([u]))[0] == pytest.approx(exact, rel=2e-10)


@pytest.mark.parametrize("rate", [SHANNON, RateModel("nr", 5.0, 0.75, 0.86)])
def test_rates_are_the_fleets_rates(rate):
    state, device = links(rate), np.array([0, 1, 2, 3])
    share = np.array([0.3, 0.6, 0.25, 1.0])
    assert curves_of(state, device).rate(share) == pytest.approx(uplink_bps(state, share, device))


@given(st.floats(1e-6, 1.0), st.floats(1e-3, 1e3), st.sampled_from([np.inf, 2e6, 4e5]))
def test_share_for_inverts_the_rate(share, signal, cap):
    one = np.ones(1)
    curves = Curves(np.zeros(1, int), one < 0, one * signal, one * 1e6, one * cap, one)
    rate = curves.rate(one * share)
    assert curves.share_for(rate)[0] == pytest.approx(share, rel=1e-9)


@given(st.floats(1e-4, 1.0), st.sampled_from([np.inf, 2e6]))
def test_slope_is_the_derivative(share, cap):
    one = np.ones(1)
    curves = Curves(np.zeros(1, int), one < 0, one * 0.7, one * 1e6, one * cap, one)
    step = 1e-6 * share
    if abs(share / max(curves.kink()[0], 1e-30) - 1.0) > 1e-4:
        numeric = (curves.rate(one * (share + step)) - curves.rate(one * (share - step))) / 2 / step
        assert curves.slope(one * share)[0] == pytest.approx(numeric[0], rel=1e-4)


def test_more_than_any_bandwidth_gives_is_never_reached():
    one = np.ones(1)
    curves = Curves(np.zeros(1, int), one < 0, one, one * 1e6, one * np.inf, one)
    assert curves.share_for(np.array([1e6 / np.log(2.0)]))[0] == np.inf


def test_an_outage_is_named():
    state = links()
    assert silent(state, np.arange(5)).tolist() == [False] * 4 + [True]
    with pytest.raises(InfeasibleError, match="device 4 has an uplink of 0 bit/s"):
        curves_of(state, np.arange(5))
