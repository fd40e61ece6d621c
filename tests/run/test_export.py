"""What is exported says what was tuned, and answers as it."""

import json
import shutil

import pytest
from transformers import pipeline

from airtune.errors import CheckpointError, RecipeError
from airtune.run import export_run


@pytest.fixture(scope="module")
def merged(sentiment):
    return export_run(sentiment, "merged")


def test_a_pipeline_says_the_classes_by_their_names(sentiment, merged):
    rows = [json.loads(line) for line in (sentiment.parent / "rows.jsonl").read_text().splitlines()]
    ask = pipeline("text-classification", model=str(merged))
    right = [ask(row["text"])[0]["label"] == row["label"] for row in rows[:12]]
    recorded = json.loads((sentiment / "result.json").read_text())["test"]["accuracy"]
    assert recorded > 0.9
    assert sum(right) / len(right) > 0.9


def test_the_classes_keep_the_order_of_the_bases_head(sentiment, merged):
    config = json.loads((merged / "config.json").read_text())
    named = ["positive", "very negative", "neutral"]
    assert json.loads((sentiment / "run.json").read_text())["data"]["labels"] == named
    assert list(config["id2label"].values()) == named
    assert config["problem_type"] == "single_label_classification"


def test_the_best_round_is_kept_and_exported(sentiment, tmp_path):
    """A later round that is worse does not displace it; the disk holds three checkpoints at most."""
    saved = sorted(path.name for path in (sentiment / "checkpoint").iterdir())
    best = json.loads((sentiment / "result.json").read_text())["validation_best"]["round"] + 1
    assert saved == sorted({f"round-{best:06d}", "round-000005", "round-000006"})
    place = export_run(sentiment, "adapter", round="best", output=tmp_path / "best")
    said = json.loads((place / "airtune.json").read_text())["quality"]
    assert said["measured_on"].endswith(f"model after {best} of 6 rounds")


def test_a_round_that_nobody_can_name_is_refused(sentiment, tmp_path):
    run = shutil.copytree(sentiment, tmp_path / "run")
    with pytest.raises(RecipeError, match="round must be best or last, got 'first'"):
        export_run(run, "adapter", round="first")
    best = json.loads((run / "result.json").read_text())["validation_best"]["round"] + 1
    if best < 6:
        shutil.rmtree(run / "checkpoint" / f"round-{best:06d}")
        with pytest.raises(CheckpointError, match=f"no longer holds round {best}"):
            export_run(run, "adapter", round="best")
