import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from airtune.report import summarise
from airtune.report.curves import draw, quality_chart
from airtune.report.decisions import heatmaps
from airtune.report.memory import limits_figure, waterfall
from airtune.report.rounds import round_data, shown_devices, shown_rounds
from airtune.report.solver import forecast_figure, gap_figure, solver_sentence
from airtune.report.study import load_study
from airtune.report.svg import write_chart


def test_a_curve_is_the_mean_between_the_seeds(comparison):
    study = load_study([comparison])
    chart = quality_chart(study, summarise(study), "time")
    assert [curve.colour for curve in chart.curves] == [1, 0, 2]
    for curve in chart.curves:
        assert (curve.low <= curve.mean).all()
        assert (curve.mean <= curve.high).all()
        assert curve.reached is not None
        assert (curve.spent[0], curve.mean[0]) == (0.0, 4.6)


def test_a_figure_is_strict_json_without_fixed_colours(comparison):
    study = load_study([comparison])
    figure = draw(quality_chart(study, summarise(study), "bytes"))
    text = json.dumps(figure, allow_nan=False)
    assert "#" not in text
    assert "var(--c1) 16%" in text


def test_the_svg_is_well_formed_and_carries_its_assumptions(comparison):
    study = load_study([comparison])
    chart = quality_chart(study, summarise(study), "time")
    root = ElementTree.fromstring(write_chart(chart, "Loss & time", "Fleet <cell>."))
    text = "".join(root.itertext())
    assert "Loss & time" in text
    assert "Fleet <cell>." in text
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 3


def test_a_small_run_is_shown_whole(build_run):
    run = load_study([build_run()]).first
    assert shown_rounds(run, 12) == list(range(30))
    assert shown_devices(run).tolist() == list(range(12))


def test_a_large_run_is_shown_by_its_slowest_and_a_sample(build_run):
    run = load_study([build_run(devices=90, rounds=70)]).first
    devices, rounds = shown_devices(run), shown_rounds(run, 40)
    assert len(set(devices.tolist())) == 40
    took = [row["round_s"] for row in run.record.rounds]
    assert len(rounds) <= 40
    assert {0, 69, int(np.argmax(took))} <= set(rounds)
    total = np.bincount(run.record.devices["device"], np.nan_to_num(run.record.devices["finish_s"]))
    assert int(np.argmax(total)) in devices


def test_a_round_carries_its_straggler_and_reasons(build_run):
    run = load_study([build_run()]).first
    shown = round_data(run, 5, shown_devices(run))
    assert shown["status"][0] == "refused"
    assert shown["finish"][0] is None
    assert shown["straggler"] in shown["device"][1:]
    assert len(shown["reason"]) == 12


def test_only_knobs_that_vary_become_heatmaps(build_run):
    run = load_study([build_run()]).first
    figures, same = heatmaps(run, shown_devices(run))
    assert set(figures) == {"Pruned weights", "Share of the link"}
    assert "LoRA rank 8, no model split, local steps 8." in same
    heat = np.array(figures["Share of the link"]["data"][0]["z"], float)
    assert heat.shape == (12, 30)
    np.testing.assert_allclose(heat.sum(axis=0), 1.0, atol=1e-3)


def test_the_waterfall_adds_up_to_the_recorded_peak(build_run):
    run = load_study([build_run()]).first
    figure, caption = waterfall(run)
    bars = figure["data"][0]
    steps = dict(zip(bars["y"], bars["x"], strict=True))
    parts = [steps[n] for n in steps if n not in ("peak", "saved by pruning")]
    assert sum(parts) == pytest.approx(steps["peak"])
    assert steps["saved by pruning"] > 0
    assert "jetson-11" in caption


def test_parts_that_disagree_with_the_record_are_not_shown(build_run):
    run = load_study([build_run()]).first
    run.record.devices["peak_bytes"] *= 1.5
    assert waterfall(run) is None
    assert limits_figure(run, shown_devices(run)) is not None


def test_what_was_planned_stands_beside_what_was_measured(build_run):
    run = load_study([build_run()]).first
    shown = shown_devices(run)
    assert len(limits_figure(run, shown)["data"]) == 2
    name = str(run.record.devices["name"][run.record.devices["device"] == shown[0]][0])
    for record, planned in zip(run.record.rounds, (2e9, 1e9), strict=False):
        record["planned_peak_bytes"] = {name: planned}
    bars, _, marks = limits_figure(run, shown)["data"]
    measured = np.nanmax(run.record.devices["peak_bytes"][run.record.devices["name"] == name])
    assert marks["x"][0] / bars["x"][0] == pytest.approx(2e9 / measured)
    assert marks["x"][1:] == [None] * (len(shown) - 1)


def test_a_fleet_without_limits_has_no_memory_figure(build_run):
    run = load_study([build_run()]).first
    run.record.devices["memory_bytes"][:] = np.inf
    assert waterfall(run) is None
    assert limits_figure(run, shown_devices(run)) is None


def test_the_gap_is_shown_where_something_certifies_it(build_run):
    solved = load_study([build_run("a")]).first
    plain = load_study([build_run("b", method="fedavg-lora")]).first
    assert len(gap_figure(solved)["data"]) == 2
    assert gap_figure(plain) is None
    assert "30 optimal" in solver_sentence(solved)
    assert "solves no optimisation problem" in solver_sentence(plain)


@pytest.mark.parametrize(
    ("gap", "said"),
    [(5.3e-3, "1 proven within 0.53 % of the optimum"), (None, "1 ended without a certificate")],
)
def test_a_plan_short_of_the_optimum_says_how_far(build_run, gap, said):
    run = load_study([build_run(rounds=3)]).first
    run.record.rounds[1]["solution"] |= {"status": "stalled", "gap": gap}
    assert f"2 optimal, {said}; " in solver_sentence(run)


def test_planned_and_real_times_are_both_drawn(build_run):
    plain = load_study([build_run("b", method="fedavg-lora")]).first
    assert len(forecast_figure(plain)["data"]) == 2
