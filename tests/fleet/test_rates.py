import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.fleet.rates import NR, SHANNON, downlink_bps, rate_bps, uplink_bps
from airtune.plan import LinkSpec, LinkState, RateModel

models = st.sampled_from([SHANNON, NR, RateModel("nr", 4.4, 0.4, 0.9)])
bands = st.floats(1e-3, 1e9)
signals = st.floats(1e-3, 1e15)


@given(models, bands, bands, st.floats(0, 1), signals)
def test_rate_is_concave_in_bandwidth(model, first, second, mix, signal):
    middle = rate_bps(model, mix * first + (1 - mix) * second, signal)
    chord = mix * rate_bps(model, first, signal) + (1 - mix) * rate_bps(model, second, signal)
    assert middle >= chord * (1 - 1e-9)


@given(models, bands, st.floats(1, 10), signals, st.floats(1, 10))
def test_rate_rises_with_bandwidth_and_signal(model, band, wider, signal, stronger):
    rate = rate_bps(model, band, signal)
    assert rate_bps(model, band * wider, signal) >= rate * (1 - 1e-12)
    assert rate_bps(model, band, signal * stronger) >= rate * (1 - 1e-12)


@given(models, signals)
def test_no_band_carries_nothing_and_any_band_less_than_its_limit(model, signal):
    assert rate_bps(model, 0.0, signal) == 0.0
    limit = model.usable * model.efficiency * signal / np.log(2)
    assert rate_bps(model, 1e30, signal) <= limit * (1 + 1e-12)


@given(bands, signals)
def test_shannon_is_the_closed_form(band, signal):
    expected = band * np.log1p(signal / band) / np.log(2)
    assert rate_bps(SHANNON, band, signal) == pytest.approx(expected, rel=1e-12)


def test_nr_is_capped_at_high_signal_and_attenuated_at_low():
    assert rate_bps(NR, 1e6, 1e15) == pytest.approx(0.86 * 7.40625e6)
    assert rate_bps(NR, 1e6, 1e6) == pytest.approx(0.86 * 0.75e6)


def test_rate_broadcasts_band_against_signal():
    rates = rate_bps(SHANNON, np.array([[1e6], [2e6]]), np.array([1e6, 3e6, 7e6]))
    assert rates.shape == (2, 3)
    assert rates[0].tolist() == pytest.approx([1e6, 2e6, 3e6])


@pytest.fixture
def mixed() -> LinkState:
    """Two devices on a shared radio link, one on shared air, one in an outage."""
    nan = np.nan
    return LinkState(
        specs=(
            LinkSpec("cell", "shared", 1e6, 2e6, SHANNON, None),
            LinkSpec("wifi", "shared", 0.0, 0.0, SHANNON, None),
        ),
        link=np.array([0, 0, 1, 1]),
        up_signal_hz=np.array([1e6, 3e6, nan, nan]),
        down_signal_hz=np.array([2e6, 6e6, nan, nan]),
        up_capacity_bps=np.array([nan, nan, 8e6, 0.0]),
        down_capacity_bps=np.array([nan, nan, 9e6, 0.0]),
        available=np.ones(4, bool),
    )


def test_uplink_divides_hertz_on_radio_and_air_time_on_capacity(mixed):
    rates = uplink_bps(mixed, np.array([1.0, 1.0, 0.25, 0.5]))
    assert rates.tolist() == pytest.approx([1e6, 2e6, 2e6, 0.0])


def test_uplink_of_some_devices_is_that_part_of_the_whole(mixed):
    share, device = np.array([0.1, 0.9, 0.4, 0.2]), np.array([1, 2])
    part = uplink_bps(mixed, share[device], device)
    assert part.tolist() == uplink_bps(mixed, share)[device].tolist()


def test_downlink_is_a_broadcast_on_the_whole_band(mixed):
    assert downlink_bps(mixed).tolist() == pytest.approx([2e6, 4e6, 9e6, 0.0])
    assert downlink_bps(mixed, np.array([2])).tolist() == [9e6]


def test_half_the_hertz_keep_more_than_half_the_rate_but_half_the_air_only_half(mixed):
    whole, half = uplink_bps(mixed, np.ones(4)), uplink_bps(mixed, np.full(4, 0.5))
    assert half[0] > 0.5 * whole[0]
    assert half[2] == 0.5 * whole[2]
