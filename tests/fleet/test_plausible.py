"""Numbers in another unit are noticed, and no preset has any."""

from importlib.resources import files

import pytest

from airtune.fleet import load_fleet
from airtune.fleet.plausible import implausible

DEVICE = {"name": "gate", "link": "air", "gflops_per_s": 50, "memory_gib": 4, "power_w": 5}


def fleet(link=None, **changed):
    capacity = {"up_mbps": 5, "down_mbps": 20}
    air = link or {"kind": "dedicated", "capacity": capacity}
    return load_fleet({"name": "one", "links": {"air": air}, "devices": [{**DEVICE, **changed}]})


@pytest.mark.parametrize(
    "name",
    [
        path.name[:-5]
        for path in files("airtune.fleet").joinpath("presets").iterdir()
        if path.name.endswith(".yaml")
    ],
)
def test_no_preset_has_any(name):
    assert implausible(load_fleet(name)) == []


@pytest.mark.parametrize(
    ("key", "value"), [("memory_gib", 4096), ("gflops_per_s", 5e10), ("power_w", 5000)]
)
def test_a_device_with_a_number_in_another_unit_is_named(key, value):
    (said,) = implausible(fleet(**{key: value}))
    assert said.startswith(f"{key} of gate")


def test_a_link_with_a_number_in_another_unit_is_named():
    wired = {"kind": "dedicated", "capacity": {"up_mbps": 5e6, "down_mbps": 20}}
    (said,) = implausible(fleet(wired))
    assert said.startswith("up_mbps of gate")
    radio = {"up_bandwidth_mhz": 2e7, "down_bandwidth_mhz": 20, "radius_m": 100}
    (said,) = implausible(fleet({"kind": "shared", "radio": radio}))
    assert said.startswith("up_bandwidth_mhz of air")
