"""What heads and channels cost is measured once, stands in the header, and is read again."""

import json

import pytest

from airtune.errors import CheckpointError, RecipeError
from airtune.recipe import load_recipe
from airtune.records import read_run
from airtune.run import remembered_sensitivity, run_recipe
from airtune.run.method import choose_method
from airtune.run.sensitivity import stored_sensitivity

QUICK = [
    "method.name=fluctuation-prune", "train.rounds=1", "train.local_steps=1",
    "train.per_device_train_batch_size=2", "data.limit=40", "data.test_limit=4",
    "data.max_length=64", "fleet.devices=2", "threads=1",
]  # fmt: skip


def test_it_is_measured_once_and_stands_in_the_header(tmp_path, monkeypatch):
    recipe = load_recipe(overrides=[*QUICK, f"output={tmp_path}"])
    run = run_recipe(recipe, folder=tmp_path / "one", reports=False).folder
    found = remembered_sensitivity(read_run(run).header)
    assert found == stored_sensitivity(recipe, choose_method(recipe))
    assert found.ffn_cost[-1] > 0.0

    def again(*_):
        raise AssertionError("measured twice")

    monkeypatch.setattr("airtune.run.sensitivity.measure_sensitivity", again)
    other = run_recipe(recipe, folder=tmp_path / "two", reports=False).folder
    assert remembered_sensitivity(read_run(other).header) == found


def test_what_a_published_rule_does_not_use_is_not_measured():
    recipe = load_recipe(overrides=["method.name=llm-pruner"])
    assert not choose_method(recipe).method.wants


def test_how_slices_are_mended_is_the_recipes_or_the_methods():
    assert choose_method(load_recipe(overrides=["train.mend=least-squares"])).method.work.mend == (
        "least-squares"
    )
    assert choose_method(load_recipe()).method.work.mend == "mean"
    with pytest.raises(RecipeError, match=r"train\.mend.*none.*mean.*least-squares"):
        load_recipe(overrides=["train.mend=squares"])


def test_a_classifier_has_no_base_to_learn_from():
    asked = ["train.distill=0.5", "data.source=embedded:topics", "data.task=classification"]
    with pytest.raises(RecipeError, match=r"train\.distill 0\.5 is for language models"):
        choose_method(load_recipe(overrides=asked))
    assert choose_method(load_recipe(overrides=asked[:1])).method.work.distill == 0.5


def test_damage_is_named(tmp_path):
    recipe = load_recipe(overrides=[*QUICK, f"output={tmp_path}"])
    with pytest.raises(CheckpointError, match=r"sensitivity in the header is damaged.*'heads'"):
        remembered_sensitivity({"sensitivity": {}})
    chosen = choose_method(recipe)
    assert stored_sensitivity(recipe, chosen) is None
    from airtune.run import sensitivity

    path = sensitivity._path(recipe, chosen)
    path.parent.mkdir()
    path.write_text(json.dumps([1]))
    with pytest.raises(CheckpointError, match=r"is damaged.*remove it, it is measured again"):
        stored_sensitivity(recipe, chosen, fingerprint="x")
