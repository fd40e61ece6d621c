"""Plans over measured traces: the whole trace is looked at, and an outage is named."""

from dataclasses import replace

import numpy as np
import pytest

from airtune.cost import predict
from airtune.plan import whole_model
from airtune.planner import draws_of, plan_of, sample, setting_of
from airtune.planner.outage import outages_at
from airtune.recipe import load_recipe

ROWS = {"steady": (8, 8, 8, 8), "doubling": (4, 4, 8, 8), "gap": (8, 8, 0, 8)}


def setting(folder, name, **changes):
    lines = [f"{10 * row},{rate},{rate}" for row, rate in enumerate(ROWS[name])]
    (folder / "t.csv").write_text("\n".join(["time_s,down_mbps,up_mbps", *lines]))
    traces = {"files": [str(folder / "t.csv")], "uplink": "measured", "offset": "none"}
    device = {"gflops_per_s": 10, "memory_gib": 1, "power_w": 5}
    fleet = {
        "name": "road",
        "links": {
            "road": {"kind": "dedicated", "traces": traces},
            "desk": {"kind": "dedicated", "capacity": {"up_mbps": 8, "down_mbps": 8}},
        },
        "devices": [
            {"name": "car", "count": 1, "link": "road", **device},
            {"name": "pc", "count": 1, "link": "desk", **device},
        ],
    }
    recipe = {"fleet": {"source": fleet}, "method": {"name": "fedavg-lora"}, "train": {"rounds": 8}}
    return setting_of(load_recipe(recipe | changes))


def test_sampled_rounds_are_spread_over_the_trace(tmp_path):
    doubling = setting(tmp_path, "doubling")
    car, pc = sample(doubling, draws_of(8, None)).columns["upload_s"].T
    np.testing.assert_allclose(car / pc, [2, 2, 2, 2, 1, 1, 1, 1])


def test_an_outage_is_named_and_its_mean_wait_is_in_the_rounds_time(tmp_path):
    gap, steady = (plan_of(setting(tmp_path, name)) for name in ("gap", "steady"))
    (said,) = gap.warnings
    assert "1 of 2 devices have a link outage in some of the 8 sampled rounds, car in 2." in said
    assert "at most 10.0 s" in said
    assert steady.warnings == ()
    # of the moments 0, 5, .. 35 s, those at 20 and 25 s wait until 30 s
    assert gap.round_s - steady.round_s == pytest.approx((10 + 5) / 8, rel=0.01)
    assert gap.total_s == pytest.approx(8 * gap.round_s)
    assert gap.total_energy_j == pytest.approx(steady.total_energy_j)
    assert gap.devices[0].finish_s == pytest.approx(steady.devices[0].finish_s)


def test_a_round_waits_no_longer_than_its_deadline(tmp_path):
    found = sample(setting(tmp_path, "gap", deadline_s=4), draws_of(8, None))
    assert found.waited_s.max() > 0.0
    np.testing.assert_allclose((found.round_s + found.waited_s)[[4, 5]], 4.0)


def test_a_control_that_sends_nothing_waits_for_no_link(tmp_path):
    alone = setting(tmp_path, "gap", method={"name": "local-only"})
    assert not sample(alone, draws_of(8, None)).waited_s.any()


def test_an_uplink_is_waited_for_once_the_device_has_computed(tmp_path):
    gap = setting(tmp_path, "gap")
    away = outages_at(gap.fleet, 0, 25.0)
    assert away.up_s[0] == pytest.approx(5.0, abs=0.02)
    assert away.up_s[1] == 0.0
    only_up = replace(away, down_s=np.zeros(2))
    told = whole_model(np.arange(2), rank=8, local_steps=1, share=np.ones(2))
    cost = predict(gap.problem, told, links=away.links, flops_per_s=gap.fleet.flops_at(0))
    for compute_s, waits_s in ((2.0, 3.0), (9.0, 0.0)):
        done = replace(cost, download_s=np.zeros(2), compute_s=np.full(2, compute_s))
        assert only_up.waits(told, done)[0] == pytest.approx(waits_s, abs=0.02)
