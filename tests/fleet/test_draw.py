import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.errors import FleetError
from airtune.fleet import load_fleet
from airtune.fleet.draw import rescale


@given(st.lists(st.integers(1, 500), min_size=1, max_size=12), st.integers(1, 10_000))
def test_rescaling_gives_the_total_and_keeps_proportions_within_one(counts, total):
    scaled = rescale(counts, total)
    assert sum(scaled) == total
    exact = np.array(counts) * total / sum(counts)
    assert np.all(np.abs(np.array(scaled) - exact) < 1)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=12))
def test_rescaling_to_the_same_total_changes_nothing(counts):
    assert rescale(counts, sum(counts)) == counts
    assert rescale(counts, None) == counts


def test_columns_follow_the_spreads(cell):
    fleet = load_fleet(cell, devices=500)
    assert fleet.flops_per_s.min() >= 1e9
    assert fleet.flops_per_s.max() <= 9e9
    assert set(fleet.memory_bytes.tolist()) == {1024.0**3}
    assert set(fleet.transmit_power_w.round(9).tolist()) == {0.1}
    assert fleet.names[0] == "dev-1"
    assert set(fleet.kinds) == {"dev"}


def test_a_class_on_several_links_takes_them_in_turn(cell):
    cell["links"]["other"] = cell["links"]["cell"]
    cell["devices"][0]["link"] = ["other", "cell"]
    assert load_fleet(cell).link.tolist() == [1, 0, 1, 0]


def test_a_single_device_bears_the_name_of_its_class(cell):
    cell["devices"][0]["count"] = 1
    assert load_fleet(cell).names == ("dev",)


def test_two_devices_of_one_name_are_refused(cell):
    first = cell["devices"][0]
    cell["devices"].append({**first, "name": "dev-1", "count": 1})
    with pytest.raises(
        FleetError, match=r"'test' names two devices 'dev-1'; give its classes names"
    ):
        load_fleet(cell)


def test_the_same_seed_draws_the_same_fleet_and_another_does_not(cell):
    first, again, other = (load_fleet(cell, seed=seed) for seed in (3, 3, 4))
    assert first.flops_per_s.tolist() == again.flops_per_s.tolist()
    assert first.flops_per_s.tolist() != other.flops_per_s.tolist()


def test_assumptions_hold_the_files_own_lines_links_and_server(cell):
    cell["assumptions"] = "not a real place"
    cell["links"]["twin"] = cell["links"]["cell"]
    cell["devices"][0]["link"] = "cell"
    lines = load_fleet(cell).assumptions
    assert lines[0] == "not a real place"
    assert lines[1].startswith("cell, twin: shared, 1 MHz up, 1 MHz down, macro path loss to 300 m")
    assert lines[2] == "edge server: 10 TFLOP/s, 24.0 GiB"
    assert len(lines) == 3


def test_rescaling_is_among_the_assumptions(cell):
    assert "rescaled from 4 to 7 devices" in load_fleet(cell, devices=7).assumptions[-1]
