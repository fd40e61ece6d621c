import numpy as np
import pytest

from airtune.fleet.fading import Fading
from airtune.fleet.moment import Members, Moment
from airtune.fleet.path_loss import PathLoss
from airtune.fleet.radio import NoiseBudget, RadioMedium


def place(medium, count=5000, distance_m=np.nan, seed=0):
    members = Members(np.arange(count), np.full(count, 0.1), np.full(count, distance_m))
    return medium.place("cell", members, seed)


def moment(round=0, slot=0, slot_s=0.5):
    return Moment(seed=0, round=round, slot=slot, time_s=0.0, slot_s=slot_s)


def test_link_budget_at_a_known_distance_is_the_sum_in_db():
    noise = NoiseBudget(
        -174.0, base_station_figure_db=5, device_figure_db=9, interference_margin_db=3
    )
    medium = RadioMedium(1e6, 1e6, shadowing_db=0.0, base_station_w=10.0, noise=noise)
    up, down = place(medium, 1, distance_m=1000.0).at(moment())
    # 20 dBm up, 40 dBm down, 128.1 dB loss; densities -166 and -162 dBm/Hz.
    assert 10 * np.log10(up[0]) == pytest.approx(20 - 128.1 + 166)
    assert 10 * np.log10(down[0]) == pytest.approx(40 - 128.1 + 162)


def test_devices_stand_uniformly_on_the_disc():
    distance = place(RadioMedium(1e6, 1e6, radius_m=200, min_distance_m=20)).distance_m
    assert distance.min() >= 20
    assert distance.max() <= 200
    share_within_half_the_area = np.mean(distance**2 < (20**2 + 200**2) / 2)
    assert share_within_half_the_area == pytest.approx(0.5, abs=0.03)


def test_a_class_may_place_its_devices_itself():
    assert set(place(RadioMedium(1e6, 1e6), 3, distance_m=77.0).distance_m.tolist()) == {77.0}


def test_shadowing_has_the_stated_deviation():
    channel = place(RadioMedium(1e6, 1e6, shadowing_db=8.0), distance_m=100.0)
    level = 10 * np.log10(channel.up_signal_hz)
    assert level.std() == pytest.approx(8.0, rel=0.04)


def test_shadowing_of_the_model_differs_with_sight():
    hidden = RadioMedium(1e6, 1e6, path_loss=PathLoss("umi", line_of_sight="never"))
    seen = RadioMedium(1e6, 1e6, path_loss=PathLoss("umi", line_of_sight="always"))
    for medium, deviation in ((hidden, 7.82), (seen, 4.0)):
        level = 10 * np.log10(place(medium, distance_m=100.0).up_signal_hz)
        assert level.std() == pytest.approx(deviation, rel=0.04)


def test_share_of_devices_in_sight_is_the_probability():
    medium = RadioMedium(1e6, 1e6, path_loss=PathLoss("umi"), shadowing_db=0.0)
    levels = np.unique(place(medium, distance_m=50.0).up_signal_hz.round(3), return_counts=True)
    assert len(levels[0]) == 2
    expected = 18 / 50 + np.exp(-50 / 36) * (1 - 18 / 50)
    assert levels[1][1] / 5000 == pytest.approx(expected, abs=0.03)


def test_gain_is_the_same_in_both_directions():
    channel = place(RadioMedium(1e6, 1e6, fading=Fading("rayleigh")), 50)
    up, down = channel.at(moment())
    assert (up / channel.up_signal_hz).tolist() == pytest.approx(
        (down / channel.down_signal_hz).tolist()
    )


def test_fading_per_round_stands_still_within_the_round():
    channel = place(RadioMedium(1e6, 1e6, fading=Fading("rayleigh"), slot_s=0.5), 10)
    assert channel.at(moment(slot=0))[0].tolist() == channel.at(moment(slot=9))[0].tolist()
    assert channel.at(moment(round=0))[0].tolist() != channel.at(moment(round=1))[0].tolist()


def test_fading_per_slot_changes_at_the_edges_of_its_own_slot():
    fading = Fading("rayleigh", every="slot")
    channel = place(RadioMedium(1e6, 1e6, fading=fading, slot_s=1.0), 10)
    seen = [channel.at(moment(slot=slot))[0].tolist() for slot in range(4)]
    assert seen[0] == seen[1]
    assert seen[2] == seen[3]
    assert seen[0] != seen[2]


def test_fading_averages_to_the_mean_signal():
    channel = place(RadioMedium(1e6, 1e6, fading=Fading("rayleigh")), 100)
    gains = [channel.at(moment(round))[0] / channel.up_signal_hz for round in range(200)]
    assert np.mean(gains) == pytest.approx(1.0, abs=0.03)


def test_equal_seeds_place_alike_and_others_do_not():
    medium = RadioMedium(1e6, 1e6)
    assert place(medium, 5).up_signal_hz.tolist() == place(medium, 5).up_signal_hz.tolist()
    assert place(medium, 5).up_signal_hz.tolist() != place(medium, 5, seed=1).up_signal_hz.tolist()
