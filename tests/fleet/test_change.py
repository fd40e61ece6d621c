"""A fleet with more or less of something differs in nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from airtune.fleet import load_fleet
from airtune.fleet.change import with_bandwidth, with_memory, with_server, with_speed, without


@pytest.mark.parametrize("name", ["pocket", "jetson-80", "orin-6-sites"])
def test_links_carry_a_multiple_and_fade_as_before(name):
    fleet = load_fleet(name)
    wide = with_bandwidth(fleet, up=2.0, down=3.0)
    before, after = (one.links_at(3, 0, 0.0) for one in (fleet, wide))
    np.testing.assert_allclose(after.up_capacity_bps, 2.0 * before.up_capacity_bps)
    np.testing.assert_allclose(after.down_capacity_bps, 3.0 * before.down_capacity_bps)
    np.testing.assert_array_equal(after.up_signal_hz, before.up_signal_hz)
    for old, new in zip(before.specs, after.specs, strict=True):
        assert new.up_bandwidth_hz == 2.0 * old.up_bandwidth_hz
        assert new.down_bandwidth_hz == 3.0 * old.down_bandwidth_hz


def test_devices_left_out_are_never_there_and_nobody_else_notices():
    fleet = load_fleet("pocket")
    rest = without(fleet, np.array([2, 5]))
    for number in range(20):
        before, after = fleet.links_at(number, 0, 0.0), rest.links_at(number, 0, 0.0)
        assert np.flatnonzero(before.available & ~after.available).tolist() == [2, 5]
        np.testing.assert_array_equal(before.up_signal_hz, after.up_signal_hz)


def test_memory_server_and_speed_change_alone():
    fleet = load_fleet("jetson-80")
    more = with_memory(fleet, factor=2.0, more_bytes=1.0, kind="agx")
    is_agx = np.array(fleet.kinds) == "agx"
    np.testing.assert_array_equal(
        more.memory_bytes, np.where(is_agx, 2 * fleet.memory_bytes + 1, fleet.memory_bytes)
    )
    assert with_server(fleet, 3.0).server == replace(
        fleet.server, flops_per_s=3.0 * fleet.server.flops_per_s
    )
    fast = with_speed(fleet, 7, 2.0)
    assert fast.flops_per_s[7] == 2.0 * fleet.flops_per_s[7]
    assert np.delete(fast.flops_per_s, 7).tolist() == np.delete(fleet.flops_per_s, 7).tolist()
