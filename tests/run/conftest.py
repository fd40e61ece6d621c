"""A tiny recipe; a tiny encoder with a head of its own, and a run that tunes it."""

import json

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from airtune.data.embedded import EMBEDDED_MODEL
from airtune.recipe import load_recipe
from airtune.records import read_run
from airtune.run import load_assets, run_recipe

CUES = {"positive": "apples", "very negative": "pears", "neutral": "three"}
TINY = [
    "data.limit=60",
    "data.test_limit=10",
    "data.max_length=40",
    "fleet.devices=3",
    "train.rounds=2",
    "train.local_steps=1",
    "train.per_device_train_batch_size=2",
    "threads=1",
    "calibration={rounds: 2, devices: 2, budgets: [0.3]}",
]


def recipe(*overrides):
    """Return a recipe that runs in a second."""
    return load_recipe(overrides=[*TINY, *overrides])


@pytest.fixture(scope="session")
def assets():
    """Model, data and fleet of the tiny recipe."""
    return load_assets(recipe())


def rounds_of(folder):
    """Return the records of a run's rounds without wall times."""
    rows = read_run(folder).rounds
    return [{key: value for key, value in row.items() if key != "measured"} for row in rows]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """A BERT with random weights whose head has three classes, several labels a text."""
    folder = tmp_path_factory.mktemp("encoder")
    config = BertConfig(
        vocab_size=1024,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
        id2label={0: "Positive", 1: "VERY_NEGATIVE", 2: "neutral"},
        problem_type="multi_label_classification",
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(EMBEDDED_MODEL).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sentiment(encoder, tmp_path_factory):
    """A run of it on texts with the same classes in other spelling; each has a word that tells."""
    folder = tmp_path_factory.mktemp("sentiment")
    rows = [
        {"text": f"{'so ' * (place % 5)}many {cue} here", "label": label}
        for place in range(30)
        for label, cue in CUES.items()
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe(
        overrides=[
            f"model.source={encoder}",
            f"data.source={folder / 'rows.jsonl'}",
            "data.task=classification",
            "data.max_length=32",
            "fleet.devices=2",
            "train.rounds=6",
            "train.local_steps=8",
            "train.per_device_train_batch_size=8",
            "train.learning_rate=0.01",
            "evaluation.every=2",
            "method.name=fedavg-lora",
            "threads=1",
        ]
    )
    run_recipe(recipe, folder=folder / "run", reports=False)
    return folder / "run"
