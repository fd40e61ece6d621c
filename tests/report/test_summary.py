import csv

import pytest

from airtune.report import summarise
from airtune.report.stats import smooth
from airtune.report.study import load_study
from airtune.report.tables import write_comparison_csv


def test_the_faster_method_needs_less_time_by_what_it_was_given(comparison):
    summary = summarise(load_study([comparison]))
    change = summary.against["jcpba"].time
    assert change.is_claim
    assert -0.6 < change.low <= change.mean <= change.high < -0.3
    assert "fedavg-lora" not in summary.against


def test_cost_to_target_is_that_of_the_round_that_met_it(build_run):
    study = load_study([build_run()])
    row = summarise(study).rows["jcpba"]
    run = study.first
    first = next(k for k, value in enumerate(smooth(run.quality)) if k >= 2 and value <= 2.6)
    assert row.time[0].value == run.end_s[first]
    assert row.rounds[0].value == first + 1
    assert row.bytes[0].value == pytest.approx(run.traffic_bytes[first])


def test_a_target_out_of_reach_costs_more_than_the_run(build_run):
    study = load_study([build_run(target=0.5)])
    row = summarise(study).rows["jcpba"]
    assert not row.time[0].hit
    assert row.time[0].value == study.first.end_s[-1]


def test_the_combined_table_has_a_line_a_method_and_seed(comparison, tmp_path):
    study = load_study([comparison])
    write_comparison_csv(study, summarise(study), tmp_path / "comparison.csv")
    with (tmp_path / "comparison.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 15
    assert lines[0]["method"] == "jcpba"
    assert lines[0]["reached"] == "1"
    assert float(lines[0]["test"]) == pytest.approx(2.15, abs=0.1)
