"""Metrics carry direction and range, and one number of a run is one number everywhere."""

import csv
import math

import numpy as np
import pytest

from airtune.cli.console import print_quality
from airtune.errors import CheckpointError
from airtune.records import DEVICE_COLUMNS, METRICS, RunWriter, main_metric
from airtune.report.cards import cards, table
from airtune.report.page import render_page
from airtune.report.study import load_study
from airtune.report.summary import summarise
from airtune.report.tables import write_comparison_csv

ACCURACY = (0.5, 0.917, 0.8899)
LOSS = (1.0, 0.6, 0.5)
WORST = (0.2, 0.41, 0.376)


@pytest.fixture
def classified(tmp_path):
    """A run whose best accuracy is not in the round of the least loss, its losses above 1."""
    header = {"name": "labels", "seed": 0, "method": {"name": "jcpba"}, "rounds": 3, "target": None}
    writer = RunWriter.create(tmp_path / "run", header)
    spent = dict.fromkeys(("round_s", "upload_bytes", "download_bytes", "energy_j"), 1.0)
    qualities = [
        {"loss": loss, "worst_tenth": 1.399, "accuracy": right, "worst_tenth_accuracy": worst}
        for loss, right, worst in zip(LOSS, ACCURACY, WORST, strict=True)
    ]
    for number, quality in enumerate(qualities):
        writer.append(
            {"round": number, "end_s": number + 1.0, **spent, "validation": quality},
            {name: np.empty(0, np.int64) for name in DEVICE_COLUMNS if name != "round"},
        )
    writer.finish(
        {
            "test": {"loss": 0.7, "accuracy": 0.86},
            "initial": None,
            "validation_best": qualities[1],
            "validation_last": qualities[2],
        }
    )
    return tmp_path / "run"


def test_the_worst_tenth_of_accuracy_is_an_accuracy(classified):
    study = load_study([classified])
    page = render_page(study, summarise(study))
    assert "139.9 %" not in page
    assert "37.6 %" in page
    assert METRICS["loss"].worst_of(study.first.record.rounds[0]["validation"]) == 1.399
    assert METRICS["perplexity"].worst_of({"worst_tenth": 1.0}) == pytest.approx(math.e)


def test_one_number_of_a_run_is_one_number_everywhere(classified, tmp_path, capsys):
    study = load_study([classified])
    summary = summarise(study)
    results = study.first.record.results
    print_quality(results)
    screen = capsys.readouterr().out
    card = next(card for card in cards(study, summary) if card.title.startswith("Best"))
    cells = [cell.main for cell in table(study, summary)[0].cells]
    for part, value in (("validation_best", 0.917), ("validation_last", 0.8899), ("test", 0.86)):
        shown = METRICS["accuracy"].write(results[part]["accuracy"])
        assert shown == METRICS["accuracy"].write(value)
        assert shown in screen
        assert shown in cells
    assert card.value == "91.7 %"
    write_comparison_csv(study, summary, tmp_path / "all.csv")
    row = next(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))
    assert (row["best"], row["final"], row["worst_tenth"]) == ("0.917", "0.8899", "0.376")


def test_a_quality_outside_its_range_is_not_recorded_nor_shown(classified, tmp_path):
    writer = RunWriter.create(tmp_path / "other", {"name": "x"})
    none = {name: np.empty(0, np.int64) for name in DEVICE_COLUMNS if name != "round"}
    with pytest.raises(ValueError, match=r"accuracy must be in \[0, 1\], got 1.2"):
        writer.append({"round": 0, "validation": {"accuracy": 1.2}}, none)
    with pytest.raises(ValueError, match=r"test: loss must be in \[0, inf\], got -1"):
        writer.finish({"test": {"loss": -1.0}})


@pytest.mark.parametrize(
    ("name", "better", "worse"),
    [
        ("loss", 1.0, 2.0),
        ("perplexity", 3.0, 4.0),
        ("accuracy", 0.9, 0.8),
        ("exact_match", 0.2, 0.1),
        ("loss", 5.0, math.nan),
    ],
)
def test_a_metric_knows_its_direction(name, better, worse):
    metric = METRICS[name]
    assert metric.is_better(better, worse)
    assert not metric.is_better(worse, better)
    assert metric.best([worse, better]) == better
    assert metric.meets(better, better)


def test_a_run_is_judged_by_its_target_else_by_accuracy_else_by_loss():
    both = {"loss": 1.0, "accuracy": 0.5}
    assert [main_metric(both).name, main_metric(both, "loss").name, main_metric({}).name] == [
        "accuracy",
        "loss",
        "loss",
    ]


def test_damaged_records_are_said_to_be_so(classified, monkeypatch):
    monkeypatch.setattr("airtune.report.study.range_fault", lambda quality: "accuracy must be less")
    with pytest.raises(CheckpointError, match="round 0: accuracy must be less; restore it"):
        load_study([classified])
