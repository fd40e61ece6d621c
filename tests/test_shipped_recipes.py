"""Shipped recipes of large models: every method of their comparisons fits, without a weight."""

from pathlib import Path

import pytest

from airtune.compare import baseline_of, entries_of
from airtune.errors import RecipeError
from airtune.methods import method_row
from airtune.planner import plan_recipe
from airtune.recipe import load_recipe

ROOT = Path(__file__).parents[1]
FEDSPINE = sorted((ROOT / "recipes").glob("*fedspine*.yaml"))
SMOL = sorted((ROOT / "recipes").glob("smol-*.yaml"))
SHAPES = {"minilm": "minilm-l6", "SmolLM2-135M": "smollm2-135m"}
"""Published shapes of models that come with packages, which need not be installed."""


def one_quick(paths):
    """Return a recipe for the gate and the others for `make check-all`."""
    return [
        pytest.param(
            path, id=path.stem, marks=[pytest.mark.slow] if path.stem != "smol-jcpba" else []
        )
        for path in paths
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_comparison_names_methods_and_a_baseline_that_exist(path):
    recipe = load_recipe(path)
    if recipe.compare.methods:
        baseline_of(recipe, entries_of(recipe, recipe.compare.methods))


def shipped(path, monkeypatch):
    """Return a recipe whose model's shape is known here, as paths from the checkout's root."""
    monkeypatch.chdir(ROOT)
    source = load_recipe(path).model.source
    for part, shape in SHAPES.items():
        if part in source:
            return load_recipe(path, overrides=[f"model.source={shape}"])
    if source.startswith(".") and not Path(source).is_dir():
        pytest.skip(f"{source} is evaluation data, which lies beside the checkout")
    return load_recipe(path)


@pytest.mark.parametrize("path", one_quick(sorted({*FEDSPINE, *SMOL})))
def test_every_method_of_the_comparison_fits_model_and_fleet(path, monkeypatch):
    recipe = shipped(path, monkeypatch)
    if path not in FEDSPINE:  # their plans do not rest on the number of rounds
        recipe = load_recipe({**recipe.plain(), "train": {**recipe.plain()["train"], "rounds": 1}})
    entries = entries_of(recipe, recipe.compare.methods)
    assert baseline_of(recipe, entries) == ("hetlora" if path in FEDSPINE else "fedavg-lora")
    for entry in entries:
        plan = plan_recipe(load_recipe({**recipe.plain(), "method": dict(entry.values["method"])}))
        assert all(row.fits for row in plan.devices), entry.label
        if path in FEDSPINE:
            most = float(entry.values["method"].get("sparsity", 0.0)) + 0.01
            assert all(row.pruned <= most for row in plan.devices), entry.label
        assert plan.round_s > 0.0


@pytest.mark.parametrize("path", FEDSPINE, ids=lambda path: path.stem)
def test_what_prunes_for_good_ends_at_one_sparsity(path, monkeypatch):
    recipe = shipped(path, monkeypatch)
    own = recipe.method.settings["sparsity"]
    for entry in entries_of(recipe, recipe.compare.methods):
        prunes = (
            method_row(entry.values["method"]["name"])
            .build(entry.values["method"]["name"], {})
            .work.cumulative
        )
        assert entry.values["method"].get("sparsity") == (own if prunes else None), entry.label


@pytest.mark.parametrize(
    ("name", "parameters"), [("roberta", 124_647_170), ("llama7b", 6_738_415_616)]
)
def test_large_models_are_planned_on_their_published_shapes(name, parameters, monkeypatch):
    recipe = shipped(ROOT / "recipes" / f"fedspine-{name}.yaml", monkeypatch)
    plan = plan_recipe(recipe)
    assert plan.parameters == parameters
    assert recipe.train.local_steps == recipe.method.settings["prune_every"] == 20
    assert len(plan.devices) == {"roberta": 80, "llama7b": 8}[name]


def test_a_comparison_narrowed_by_hand_needs_no_baseline_of_the_recipe():
    recipe = load_recipe(str(next(path for path in FEDSPINE if "base" in path.stem)))
    entries = entries_of(recipe, ["fedspine", "flora"])
    assert baseline_of(recipe, entries, is_narrowed=True) == "fedspine"
    with pytest.raises(RecipeError, match="must be one of the methods compared, fedspine, flora"):
        baseline_of(recipe, entries)
