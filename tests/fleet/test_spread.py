import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.fleet.section import SettingsSection
from airtune.fleet.spread import Spread, read_spread

RANDOM = st.integers(0, 2**32).map(np.random.default_rng)


@given(RANDOM, st.integers(1, 50), st.floats(0.1, 10), st.floats(1.1, 100))
def test_each_nth_of_the_range_holds_one_of_n_devices(random, count, low, factor):
    plain = Spread(low, low * factor).draw(random, count)
    place = (plain - low) / (low * factor - low)
    assert sorted(np.floor(np.clip(place * count + 1e-6, 0, count - 0.5))) == list(range(count))
    logs = np.log(Spread(low, low * factor, "log-uniform").draw(random, count) / low)
    place = logs / np.log(factor)
    assert sorted(np.floor(np.clip(place * count + 1e-6, 0, count - 0.5))) == list(range(count))


def read(value, **limits):
    faults = []
    return read_spread(SettingsSection({"x": value}, "dev", faults), "x", **limits), faults


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (4, Spread(4.0, 4.0)),
        ("1e9", Spread(1e9, 1e9)),
        ([1, 20], Spread(1.0, 20.0)),
        ({"low": 1, "high": 20}, Spread(1.0, 20.0)),
        ({"low": 1, "high": 20, "law": "log-uniform"}, Spread(1.0, 20.0, "log-uniform")),
    ],
)
def test_three_ways_to_write_a_spread(value, expected):
    assert read(value) == (expected, [])


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (0, "dev.x must be a number above 0, got 0"),
        ("fast", "dev.x must be a number above 0, got 'fast'"),
        ([3, 1], "dev.x must rise from low to high, got 3 to 1"),
        ([1, 2, 3], "dev.x must be a number above 0, got [1, 2, 3]"),
        ({"low": 1}, "dev.x.high is missing; it must be a number above 0"),
        (
            {"low": 1, "high": 2, "law": "uniforn"},
            "dev.x.law must be one of uniform, log-uniform, got 'uniforn'; did you mean 'uniform'?",
        ),
        ({"low": 1, "hihg": 2}, "dev.x.hihg is not a known key; did you mean 'high'?"),
    ],
)
def test_a_wrong_spread_is_a_named_fault(value, fault):
    assert fault in read(value, above=0.0)[1]


def test_log_uniform_needs_a_positive_low():
    faults = read({"low": 0, "high": 2, "law": "log-uniform"})[1]
    assert faults == ["dev.x must be above 0 for the law log-uniform, got a low of 0"]
