import copy

import numpy as np
import pytest
import yaml

from airtune.errors import FleetError
from airtune.fleet import DEVICE_KINDS, load_fleet, preset_names, preset_summaries


def changed(cell, path, value):
    """Set (or with ... remove) a dotted key of a copy."""
    data = copy.deepcopy(cell)
    place, keys = data, path.split("/")
    for key in keys[:-1]:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    place[keys[-1]] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "links",
            None,
            "^fleet 'test': links must be a mapping of names to settings, got nothing$",
        ),
        ("devices", [], r"devices must be a list with at least one entry, got \[\]"),
        ("devcies", 3, "devcies is not a known key; did you mean 'devices'"),
        ("devices/0/cuont", 3, r"devices\[0\]\.cuont is not a known key; did you mean 'count'"),
        ("devices/0/count", 0, r"devices\[0\]\.count must be a number of at least 1, got 0"),
        ("devices/0/gflops_per_s", None, r"gflops_per_s is missing; it must be a number above 0"),
        ("devices/0/gflops_per_s", -1, r"gflops_per_s must be a number above 0, got -1"),
        ("devices/0/availability", 2, r"availability must be a number in \[0, 1\], got 2"),
        ("devices/0/link", "cel", r"link names no link of this fleet: 'cel'; did you mean 'cell'"),
        ("devices/0/device", "orin-nano", "is not in the catalogue: 'orin-nano'; did you mean"),
        ("devices/0/device", "zzz", "is not in the catalogue: 'zzz'; known are jetson-nano-4gb"),
        (
            "devices/0/modes",
            {"factors": []},
            r"modes\.factors must be a list of numbers in \(0, 10\]",
        ),
        ("devices/0/modes", {"factors": [1, 0]}, r"modes\.factors must be a list .*got \[1, 0\]"),
        ("links/cell/kind", "shard", "kind must be one of shared, dedicated, got 'shard'; did you"),
        (
            "links/cell/capacity",
            {"up_mbps": 3},
            "exactly one of radio, capacity, traces, got radio and",
        ),
        ("links/cell/radio", None, "exactly one of radio, capacity, traces, got none"),
        ("links/cell/slot_s", 0, r"links\.cell\.slot_s must be a number above 0, got 0"),
        (
            "links/cell/rate",
            {"kind": "nrr"},
            r"rate\.kind must be one of shannon, nr, got 'nrr'; did",
        ),
        ("links/cell/rate", {"efficiency": 1}, r"rate\.efficiency is not a known key"),
        ("links/cell/rate", {"kind": "nr", "usable": 2}, r"rate\.usable must be a number"),
        (
            "links/cell/radio/up_bandwidth_mhz",
            0,
            "up_bandwidth_mhz must be a number above 0, got 0",
        ),
        ("links/cell/radio/radius_m", 5, "radius_m must be at least min_distance_m 10, got 5"),
        (
            "links/cell/radio/path_loss",
            {"model": "uam"},
            "uma, umi, macro, log-distance, got 'uam'; did",
        ),
        (
            "links/cell/radio/path_loss",
            {"carrier_ghz": 3},
            "must be 2 for the macro model, got 3; use uma",
        ),
        (
            "links/cell/radio/fading",
            {"every": "slot"},
            "every is slot, but the link has no slot_s; set",
        ),
        (
            "links/cell/radio/fading",
            {"k": 6},
            r"fading\.k is not a known key; known keys are model, k_db, every",
        ),
        (
            "links/cell/radio/noise",
            {"device_figure_db": -1},
            r"device_figure_db must be a number in",
        ),
        ("server", {"memory_gib": 0}, r"server\.memory_gib must be a number above 0, got 0"),
        ("server", 3, "server must be a mapping of keys to values, got 3"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(cell, path, value, message):
    with pytest.raises(FleetError, match=message):
        load_fleet(changed(cell, path, value))


WIFI = {"kind": "shared", "capacity": {"up_mbps": 3}}


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ({"kind": "shared", "capacity": {}}, r"capacity\.up_mbps is missing"),
        ({**WIFI, "rate": {"kind": "nr"}}, "rate belongs to radio links; a given or measured"),
        (
            {"kind": "shared", "capacity": {"up_mbps": 3, "varies": {"low": 2, "high": 1}}},
            "varies.low must not exceed high, got 2 and 1",
        ),
        (
            {
                "kind": "shared",
                "capacity": {"up_mbps": 3, "varies": {"low": 0, "high": 1, "every": "slot"}},
            },
            "every is slot, but the link has no slot_s",
        ),
    ],
)
def test_a_wrong_link_of_given_capacity_is_refused(cell, link, message):
    with pytest.raises(FleetError, match=message):
        load_fleet(changed(cell, "links/cell", link))


def test_a_distance_without_a_radio_link_is_refused(cell):
    data = changed(changed(cell, "links/cell", WIFI), "devices/0/distance_m", 30)
    with pytest.raises(FleetError, match="distance_m counts on a radio link only"):
        load_fleet(data)


def test_two_classes_of_one_name_are_refused(cell):
    cell["devices"] *= 2
    with pytest.raises(
        FleetError, match="devices must each have a name of their own, got 'dev' twice"
    ):
        load_fleet(cell)


def test_a_class_must_say_which_of_several_links(cell):
    cell["links"]["other"] = WIFI
    with pytest.raises(FleetError, match=r"link is missing; name one or more of cell, other"):
        load_fleet(cell)


def test_all_faults_come_together(cell):
    cell["devices"][0]["power_w"] = "much"
    cell["links"]["cell"]["kind"] = "wire"
    cell["serve"] = {}
    with pytest.raises(
        FleetError, match=r"(?s)fleet 'test' has 3 faults:.*kind.*power_w.*'server'"
    ):
        load_fleet(cell)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": 0}, "devices of a fleet must be a whole number of at least 1, got 0"),
        ({"devices": 2.5}, "devices of a fleet must be a whole number of at least 1, got 2.5"),
        ({"devices": True}, "devices of a fleet must be a whole number of at least 1, got True"),
        ({"seed": -1}, "seed of a fleet must be a whole number of at least 0, got -1"),
    ],
)
def test_a_wrong_size_or_seed_is_refused(settings, message):
    with pytest.raises(FleetError, match=message):
        load_fleet("pocket", **settings)


def test_an_unknown_fleet_names_the_nearest():
    with pytest.raises(
        FleetError, match=r"'pockett' is neither a preset .*; did you mean 'pocket'\?"
    ):
        load_fleet("pockett")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"links: [", r"broken\.yaml cannot be read: .*line 1"),
        (b"- 1\n", "must hold a mapping with links and devices, got list"),
        (b"", "must hold a mapping with links and devices, got NoneType"),
        (b"\xff\xfe\x00", r"broken\.yaml cannot be read"),
        (b"base: 3\n", "base of fleet 'broken' must be a preset or a YAML file, got 3"),
        (b"base: broken.yaml\n", r"base of fleet 'broken' leads in a circle, at 'broken\.yaml'"),
        (b"base: nowhere.yaml\n", r"'nowhere\.yaml' is neither a preset"),
    ],
)
def test_a_broken_file_is_refused(tmp_path, content, message):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(FleetError, match=message):
        load_fleet(path)


def test_a_yaml_file_gives_what_its_mapping_gives(cell, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(cell))
    assert load_fleet(path).flops_per_s.tolist() == load_fleet(cell).flops_per_s.tolist()


def test_a_file_without_a_name_is_called_after_the_file(cell, tmp_path):
    del cell["name"]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(cell))
    assert load_fleet(str(path)).name == "mine"


def test_base_takes_a_preset_and_changes_only_what_is_said():
    plain = load_fleet("cell-10")
    wide = load_fleet({"base": "cell-10", "links": {"cell": {"radio": {"up_bandwidth_mhz": 20}}}})
    assert wide.specs[0].up_bandwidth_hz == 2e7
    assert wide.specs[0].down_bandwidth_hz == plain.specs[0].down_bandwidth_hz
    assert wide.flops_per_s.tolist() == plain.flops_per_s.tolist()


def test_a_null_in_a_layer_removes_what_lies_below():
    fleet = load_fleet({"base": "cell-10", "links": {"cell": {"radio": None, **WIFI}}})
    assert fleet.specs[0].up_bandwidth_hz == 0


def test_loading_does_not_change_the_mapping(cell):
    before = copy.deepcopy(cell)
    load_fleet(cell, devices=9)
    assert cell == before


@pytest.mark.parametrize("kind", DEVICE_KINDS)
def test_every_catalogue_device_is_a_fleet_of_one(kind):
    fleet = load_fleet(kind)
    assert fleet.names == (kind,)
    assert fleet.flops_per_s.tolist() == [DEVICE_KINDS[kind].flops_per_s]
    assert fleet.memory_bytes.tolist() == [DEVICE_KINDS[kind].memory_bytes]
    assert "not probed" in fleet.assumptions[0]


def test_presets_are_those_promised_each_with_a_summary():
    assert set(preset_names()) == {
        "pocket",
        "cell-10",
        "jetson-80",
        "mixed-20",
        "orin-6-sites",
        "phones",
    }
    assert all(preset_summaries().values())


def test_a_bandwidth_widens_the_shared_radio_link_and_nothing_else():
    plain, wide = load_fleet("phones"), load_fleet("phones", bandwidth_mhz=4)
    assert (wide.specs[0].up_bandwidth_hz, wide.specs[0].down_bandwidth_hz) == (4e6, 4e6)
    assert wide.specs[1:] == plain.specs[1:]
    here, there = plain.links_at(3, 0, 9.0), wide.links_at(3, 0, 9.0)
    np.testing.assert_array_equal(here.up_signal_hz, there.up_signal_hz)
    assert any("4 MHz up, 4 MHz down" in line for line in wide.assumptions)


@pytest.mark.parametrize("source", ["jetson-80", "orin-nano-8gb"])
def test_a_bandwidth_is_refused_where_no_radio_link_is_shared(source):
    with pytest.raises(FleetError, match=f"'{source}' has no shared radio link"):
        load_fleet(source, bandwidth_mhz=4)


def test_a_bandwidth_is_refused_where_several_radio_links_are_shared(cell):
    cell["devices"][0]["link"] = ["cell", "far"]
    two = changed(cell, "links/far", cell["links"]["cell"])
    with pytest.raises(FleetError, match="one shared radio link, and fleet 'test' has cell, far"):
        load_fleet(two, bandwidth_mhz=4)
