"""Plans over measured traces: the whole trace is looked at, and an outage is named."""

import numpy as np
import pytest

from airtune.planner import draws_of, plan_of, sample, setting_of
from airtune.recipe import load_recipe

ROWS = {"steady": (8, 8, 8, 8), "doubling": (4, 4, 8, 8), "gap": (8, 8, 0, 8)}


def setting(folder, name):
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
    return setting_of(load_recipe(recipe))


def test_sampled_rounds_are_spread_over_the_trace(tmp_path):
    doubling = setting(tmp_path, "doubling")
    car, pc = sample(doubling, draws_of(8, None)).columns["upload_s"].T
    np.testing.assert_allclose(car / pc, [2, 2, 2, 2, 1, 1, 1, 1])


def test_an_outage_is_named_and_leaves_every_figure_finite(tmp_path):
    gap, steady = (plan_of(setting(tmp_path, name)) for name in ("gap", "steady"))
    (said,) = gap.warnings
    assert (
        "1 of 2 devices carry nothing in some of the 8 rounds looked at, that of car in 2;" in said
    )
    assert steady.warnings == ()
    assert gap.total_energy_j == pytest.approx(steady.total_energy_j)
    assert gap.devices[0].finish_s == pytest.approx(steady.devices[0].finish_s)
