import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.report.stats import (
    Reached,
    bootstrap,
    cost_to_target,
    difference,
    relative_change,
    smooth,
)

finite = st.floats(-1e6, 1e6)


@given(st.lists(finite, min_size=1, max_size=20), st.integers(1, 5))
def test_smoothing_is_the_mean_of_the_last_values(values, window):
    expected = [np.mean(values[max(0, k - window + 1) : k + 1]) for k in range(len(values))]
    np.testing.assert_allclose(smooth(np.array(values), window), expected, atol=1e-6)


def test_the_first_crossing_counts():
    spent, quality = np.arange(1.0, 6.0), np.array([0.4, 0.5, 0.5, 0.9, 0.7])
    assert cost_to_target(spent, quality, 0.6, higher=True, total=9.0) == Reached(4.0, True)
    assert cost_to_target(spent, quality, 0.3, higher=False, total=9.0) == Reached(9.0, False)


def test_a_mean_that_is_not_full_reaches_nothing():
    spent, quality = np.arange(1.0, 4.0), np.array([0.9, 0.9, 0.9])
    assert cost_to_target(spent, quality, 0.6, higher=True, total=9.0) == Reached(3.0, True)
    assert not cost_to_target(spent[:2], quality[:2], 0.6, higher=True, total=9.0).hit


def test_the_interval_of_few_seeds_uses_every_resample():
    values = np.array([0.0, 0.0, 9.0])
    means = [(a + b + c) / 3 for a in values for b in values for c in values]
    assert bootstrap(values) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


@given(st.lists(finite, min_size=3, max_size=8))
def test_the_interval_holds_the_mean_and_lies_in_the_range(values):
    low, high = bootstrap(np.array(values))
    slack = 1e-6 * (1 + max(map(abs, values)))
    assert min(values) - slack <= low <= np.mean(values) + slack
    assert np.mean(values) - slack <= high <= max(values) + slack


def test_two_seeds_give_no_interval():
    assert all(map(math.isnan, bootstrap(np.array([1.0, 2.0]))))


def test_many_seeds_agree_with_the_normal_interval():
    values = np.random.default_rng(0).standard_normal(400)
    low, high = bootstrap(values)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.05)


def costs(*values, hit=True):
    return [Reached(value, hit) for value in values]


def test_a_change_is_the_geometric_mean_of_paired_ratios():
    change = relative_change(costs(1.0, 8.0), costs(2.0, 4.0))
    assert change.mean == pytest.approx(0.0)
    assert not change.is_resolved


def test_pairs_resolve_what_spread_seeds_alone_would_not():
    slow = [10.0, 40.0, 160.0, 20.0, 80.0]
    change = relative_change(costs(*(0.8 * value for value in slow)), costs(*slow))
    assert change.is_less
    assert change.is_claim
    assert (change.low, change.high) == pytest.approx((-0.2, -0.2))


def test_three_seeds_resolve_but_claim_nothing():
    change = relative_change(costs(1.0, 1.1, 1.0), costs(2.0, 2.0, 2.0))
    assert change.is_resolved
    assert not change.is_claim


def test_a_baseline_that_missed_bounds_the_change_from_above():
    change = relative_change(costs(1.0, 1.0, 1.0), [*costs(2.0, 2.0), *costs(3.0, hit=False)])
    assert change.bound == "at_most"
    assert change.is_less


def test_a_miss_of_ours_can_never_be_a_gain():
    ours = [*costs(1.0, 1.0), *costs(1.0, hit=False)]
    change = relative_change(ours, costs(2.0, 2.0, 2.0))
    assert change.bound == "at_least"
    assert not change.is_less


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (costs(1.0, hit=False), costs(2.0, hit=False)),
        ([*costs(1.0), *costs(1.0, hit=False)], [*costs(1.0, hit=False), *costs(1.0)]),
        (costs(0.0), costs(1.0)),
        ([], []),
    ],
)
def test_what_cannot_be_compared_is_unknown(ours, theirs):
    assert relative_change(ours, theirs).bound == "unknown"


def test_a_missing_quality_makes_the_difference_unknown():
    assert difference(np.array([1.0, np.nan]), np.array([1.0, 1.0])).bound == "unknown"
    assert difference(np.array([2.0, 3.0]), np.array([1.0, 1.0])).mean == 1.5
