import numpy as np

from airtune.fleet.capacity import CapacityMedium
from airtune.fleet.moment import Members, Moment
from airtune.fleet.spread import Spread


def at(medium, round=0, slot=0, count=200):
    members = Members(np.arange(count), np.ones(count), np.full(count, np.nan))
    return medium.place("wifi", members, 0).at(Moment(0, round, slot, 0.0, medium.slot_s))


def test_a_steady_link_stays_in_its_range_and_never_changes():
    medium = CapacityMedium(Spread(1e6, 5e6), Spread(2e6, 2e6))
    up, down = at(medium)
    assert up.min() >= 1e6
    assert up.max() <= 5e6
    assert set(down.tolist()) == {2e6}
    assert up.tolist() == at(medium, round=7)[0].tolist()


def test_a_varying_link_is_multiplied_by_a_factor_in_range_each_round():
    medium = CapacityMedium(Spread(1e6, 1e6), Spread(2e6, 2e6), Spread(0.5, 1.0))
    up, down = at(medium)
    assert np.all((up >= 0.5e6) & (up <= 1e6))
    assert np.ptp(up) > 0.4e6
    assert (down / up).round(9).tolist() == [2.0] * 200
    assert up.tolist() != at(medium, round=1)[0].tolist()
    assert up.tolist() == at(medium, slot=3)[0].tolist()


def test_a_link_that_varies_each_slot_changes_within_the_round():
    medium = CapacityMedium(Spread(1e6, 1e6), Spread(1e6, 1e6), Spread(0.0, 1.0), "slot", 1.0)
    assert at(medium, slot=0)[0].tolist() != at(medium, slot=1)[0].tolist()
