import time

import numpy as np
import pytest

from airtune.errors import FleetError
from airtune.fleet import load_fleet, preset_names

PRESETS = preset_names()


def columns(links):
    return [
        column.tobytes()
        for column in (
            links.up_signal_hz,
            links.down_signal_hz,
            links.up_capacity_bps,
            links.down_capacity_bps,
            links.available,
        )
    ]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_same_key_gives_the_same_state_whatever_was_asked_before(preset):
    fleet, fresh = load_fleet(preset, seed=5), load_fleet(preset, seed=5)
    seen = {key: columns(fleet.links_at(*key)) for key in [(0, 0, 0.0), (3, 2, 9.5), (1, 0, 4.0)]}
    for key in reversed(seen):
        assert columns(fresh.links_at(*key)) == seen[key]
        assert columns(fleet.links_at(*key)) == seen[key]


@pytest.mark.parametrize("preset", PRESETS)
def test_rounds_and_seeds_differ(preset):
    fleet, other = load_fleet(preset, seed=5), load_fleet(preset, seed=6)
    assert columns(fleet.links_at(0, 0, 0.0)) != columns(fleet.links_at(1, 0, 0.0))
    assert columns(fleet.links_at(0, 0, 0.0)) != columns(other.links_at(0, 0, 0.0))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_device_has_either_a_signal_or_a_capacity(preset):
    links = load_fleet(preset).links_at(0, 0, 0.0)
    signal, capacity = np.isfinite(links.up_signal_hz), np.isfinite(links.up_capacity_bps)
    assert np.all(signal != capacity)
    assert np.all(signal == np.isfinite(links.down_signal_hz))
    assert np.all(capacity == np.isfinite(links.down_capacity_bps))
    radio = np.array([spec.up_bandwidth_hz > 0 for spec in links.specs])
    assert np.all(signal == radio[links.link])


def test_dropouts_follow_availability_and_stand_for_the_whole_round(cell):
    cell["devices"][0]["availability"] = 0.7
    fleet = load_fleet(cell, devices=2000)
    rounds = np.array([fleet.links_at(round, 0, 0.0).available for round in range(20)])
    assert rounds.mean() == pytest.approx(0.7, abs=0.01)
    assert np.any(rounds[0] != rounds[1])
    assert np.all(rounds[3] == fleet.links_at(3, 8, 99.0).available)


@pytest.mark.parametrize(("availability", "present"), [(1.0, True), (0.0, False)])
def test_availability_of_one_is_always_and_of_zero_never(cell, availability, present):
    cell["devices"][0]["availability"] = availability
    fleet = load_fleet(cell, devices=500)
    for round in range(10):
        assert np.all(fleet.links_at(round, 0, 0.0).available == present)


def test_speed_follows_the_mode(cell):
    cell["devices"][0]["modes"] = {"factors": [0.5], "every_rounds": 3}
    fleet = load_fleet(cell)
    assert fleet.flops_at(4).tolist() == (0.5 * fleet.flops_per_s).tolist()


def test_the_shortest_slot_is_the_fleets(cell):
    assert load_fleet(cell).slot_s is None
    cell["links"]["cell"]["slot_s"] = 2.0
    cell["links"]["quick"] = {**cell["links"]["cell"], "slot_s": 0.5}
    cell["devices"][0]["link"] = "cell"
    assert load_fleet(cell).slot_s == 0.5


def test_profiles_weigh_devices_by_their_samples(cell):
    profiles = load_fleet(cell).profiles(np.array([1, 2, 3, 4]))
    assert profiles.weight.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert profiles.names == ("dev-1", "dev-2", "dev-3", "dev-4")


@pytest.mark.parametrize("samples", [[1, 2], [0, 0, 0, 0], [1, -1, 2, 3], []])
def test_wrong_sample_counts_are_refused(cell, samples):
    with pytest.raises(FleetError, match=r"needs one sample count of at least 0 for each of its 4"):
        load_fleet(cell).profiles(np.array(samples, int))


@pytest.mark.parametrize("preset", PRESETS)
def test_ten_thousand_devices_take_under_50_ms(preset):
    fleet = load_fleet(preset, devices=10_000)
    times = []
    for round in range(5):
        start = time.perf_counter()
        fleet.links_at(round, 1, 10.0)
        fleet.flops_at(round)
        times.append(time.perf_counter() - start)
    assert np.median(times) < 0.05
