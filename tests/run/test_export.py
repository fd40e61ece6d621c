"""What is exported says what was tuned, and answers as it."""

import json

import pytest
from transformers import pipeline

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
