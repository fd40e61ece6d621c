import json

import numpy as np
import pytest

from airtune.errors import FleetError
from airtune.fleet import downlink_bps, load_fleet, uplink_bps

GOOD = {
    "schema": 1, "name": "orin-a", "flops_per_s": 4e11, "memory_bytes": 6e9,
    "up_mbps": 12, "down_mbps": 40,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    def write(**probes):
        for file, probe in probes.items():
            text = probe if isinstance(probe, str) else json.dumps(probe)
            (tmp_path / f"{file}.json").write_text(text)
        return tmp_path

    return write


def test_a_folder_of_probes_is_a_fleet_of_what_was_measured(folder):
    second = {**GOOD, "name": "orin-b", "power_w": 7, "availability": 0.5, "details": {"os": "x"}}
    fleet = load_fleet(folder(a=GOOD, b=second))
    assert fleet.names == ("orin-a", "orin-b")
    assert fleet.flops_per_s.tolist() == [4e11, 4e11]
    assert fleet.power_w.tolist() == [10, 7]
    assert fleet.availability.tolist() == [1.0, 0.5]
    links = fleet.links_at(4, 0, 77.0)
    assert uplink_bps(links, np.ones(2)).tolist() == [12e6, 12e6]
    assert downlink_bps(links).tolist() == [40e6, 40e6]
    assert [spec.kind for spec in fleet.specs] == ["dedicated"]


def test_probes_that_name_a_link_share_its_air(folder):
    site = {**GOOD, "link": "site-1"}
    fleet = load_fleet(
        folder(a=site, b={**site, "name": "b", "up_mbps": 20}, c={**GOOD, "name": "c"})
    )
    assert [(spec.name, spec.kind) for spec in fleet.specs] == [
        ("site-1", "shared"),
        ("own connection", "dedicated"),
    ]
    rates = uplink_bps(fleet.links_at(0, 0, 0.0), np.array([0.5, 0.5, 1.0]))
    assert rates.tolist() == [6e6, 10e6, 12e6]


def test_one_probe_file_is_a_fleet_of_one_or_of_many_like_it(folder):
    path = folder(a=GOOD) / "a.json"
    assert load_fleet(path).names == ("orin-a",)
    many = load_fleet(path, devices=3)
    assert many.names == ("orin-a-1", "orin-a-2", "orin-a-3")
    assert "rescaled from 1 to 3" in many.assumptions[-1]


def test_fewer_devices_than_probes_are_the_first(folder):
    assert load_fleet(folder(a=GOOD, b={**GOOD, "name": "b"}), devices=1).names == ("orin-a",)


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ("{", r"a\.json cannot be read: .*; probe the device again"),
        ("[]", r"a\.json: must be a mapping|a\.json has \d faults"),
        (
            {**GOOD, "schema": 2},
            r"a\.json has schema 2, this version reads 1; probe the device again",
        ),
        ({**GOOD, "up_mbps": 0}, r"a\.json: up_mbps must be a number above 0, got 0"),
        ({**GOOD, "memory": 3}, r"memory is not a known key; did you mean 'memory_bytes'\?"),
        ({"schema": 1, "name": "x"}, r"has 4 faults:\n  - flops_per_s is missing"),
        ({**GOOD, "availability": 1.5}, r"availability must be a number in \[0, 1\], got 1\.5"),
    ],
)
def test_a_wrong_probe_is_refused_with_its_file_and_every_fault(folder, probe, message):
    with pytest.raises(FleetError, match=message):
        load_fleet(folder(a=probe))


def test_the_faults_of_all_files_come_together(folder):
    with pytest.raises(FleetError, match=r"(?s)has 2 faults.*a\.json.*b\.json"):
        load_fleet(folder(a="{", b="{"))


def test_an_empty_folder_and_equal_names_are_refused(folder, tmp_path):
    with pytest.raises(FleetError, match=r"holds no probe file \(\*\.json\); probe a device first"):
        load_fleet(tmp_path)
    with pytest.raises(FleetError, match=r"names two devices 'orin-a'; rename one"):
        load_fleet(folder(a=GOOD, b=GOOD))
