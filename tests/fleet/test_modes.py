import numpy as np
import pytest

from airtune.fleet.modes import NO_MODES, ModePlan, tabulate_modes

PLANS = [NO_MODES, ModePlan((1.0, 0.5), 10), ModePlan((0.9, 0.6, 0.3), 4)]


@pytest.fixture
def modes():
    return tabulate_modes(PLANS, np.repeat([0, 1, 2], 300))


def test_factors_are_those_of_the_devices_own_plan(modes):
    factor = modes.factor_at(0, 3)
    assert set(factor[:300]) == {1.0}
    assert set(factor[300:600]) == {1.0, 0.5}
    assert set(factor[600:]) == {0.9, 0.6, 0.3}


def test_a_mode_lasts_its_rounds_and_then_changes(modes):
    rounds = np.array([modes.factor_at(0, round) for round in range(12)])
    fast, slow = rounds[:, 600:], rounds[:, 300:600]
    assert np.ptp(fast[0:4], axis=0).max() == 0
    assert np.any(fast[3] != fast[4])
    assert np.ptp(slow[0:10], axis=0).max() == 0
    assert np.any(slow[9] != slow[10])


def test_modes_are_drawn_evenly_and_by_seed(modes):
    factor = modes.factor_at(0, 0)
    assert np.mean(factor[600:] == 0.3) == pytest.approx(1 / 3, abs=0.09)
    assert modes.factor_at(0, 0).tolist() == factor.tolist()
    assert modes.factor_at(1, 0).tolist() != factor.tolist()
