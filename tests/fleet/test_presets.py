from collections import Counter

import numpy as np
import pytest

from airtune.fleet import downlink_bps, load_fleet, preset_names, uplink_bps

# What the shipped model of about a million parameters asks of a device in a round: five steps of
# eight sequences of 128 tokens at 4 FLOP a parameter, and adapters of about 400 kB.
ROUND_FLOPS, ADAPTER_BITS = 2e10, 3.3e6


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("devices", [1, 7, 333])
def test_a_preset_rescales_to_any_size(preset, devices):
    fleet = load_fleet(preset, devices=devices)
    assert len(fleet) == len(fleet.flops_per_s) == len(fleet.link) == devices
    assert fleet.links_at(0, 0, 0.0).available.shape == (devices,)


@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_says_what_it_assumes(preset):
    fleet = load_fleet(preset)
    assert fleet.assumptions[0].startswith(f"{preset}: ")
    assert fleet.name == preset


@pytest.mark.parametrize("preset", preset_names())
def test_every_rate_of_a_preset_is_usable(preset):
    fleet = load_fleet(preset)
    links = fleet.links_at(0, 0, 0.0)
    crowd = np.bincount(fleet.link, minlength=len(fleet.specs))[fleet.link]
    shared = np.array([spec.kind == "shared" for spec in fleet.specs])[fleet.link]
    up = uplink_bps(links, np.where(shared, 1 / crowd, 1.0))
    assert np.median(up) > 1e5
    assert np.all(up > 0)
    assert np.all(downlink_bps(links) > 0)


@pytest.mark.parametrize("seed", range(4))
def test_pocket_makes_compute_and_air_time_both_felt(seed):
    fleet = load_fleet("pocket", seed=seed)
    compute_s = ROUND_FLOPS / fleet.flops_per_s
    upload_s = np.median(
        [ADAPTER_BITS / uplink_bps(fleet.links_at(r, 0, 0.0), np.full(10, 0.1)) for r in range(30)],
        axis=0,
    )
    assert fleet.flops_per_s.min() >= 1e9
    assert fleet.flops_per_s.max() <= 20e9
    assert compute_s.max() / compute_s.min() > 8
    assert 0.2 < np.median(upload_s) / np.median(compute_s) < 5
    assert "not a real deployment" in fleet.assumptions[0]


def test_jetson_80_has_the_stated_boards_and_changes_modes():
    fleet = load_fleet("jetson-80")
    assert Counter(fleet.kinds) == {"tx2": 30, "nx": 40, "agx": 10}
    assert np.all(fleet.flops_at(0) == fleet.flops_at(19))
    changed = fleet.flops_at(19) != fleet.flops_at(20)
    assert 0.5 < changed.mean() < 1.0


def test_orin_has_six_sites_of_shared_air_and_a_cell():
    fleet = load_fleet("orin-6-sites")
    assert [spec.kind for spec in fleet.specs] == ["shared"] * 7
    assert [spec.up_bandwidth_hz > 0 for spec in fleet.specs] == [False] * 6 + [True]
    assert set(np.bincount(fleet.link)[:6]) == {5}
    links = fleet.links_at(0, 0, 0.0)
    assert len(set(links.up_capacity_bps[:12])) == 12


def test_cell_10_spans_the_speeds_of_the_papers():
    fleet = load_fleet("cell-10")
    assert len(fleet) == 10
    assert 3e11 <= fleet.flops_per_s.min() < 5e11
    assert 7e12 < fleet.flops_per_s.max() <= 1e13


def test_phones_come_and_go():
    fleet = load_fleet("phones")
    there = np.mean([fleet.links_at(r, 0, 0.0).available.mean() for r in range(50)])
    assert there == pytest.approx(0.8, abs=0.03)
