"""Speeds by precision: those of the recipe's model count, wherever a fleet declares them."""

import numpy as np
import pytest

from airtune.errors import FleetError
from airtune.fleet import load_fleet
from airtune.recipe import load_recipe
from airtune.recipe.devices import fleet_of


def source(precision):
    plain = {"gflops_per_s": 100, "memory_gib": 1, "power_w": 5}
    return {
        "base": "pocket",
        "devices": [
            {"name": "fast", "count": 2, **plain, "precision": precision},
            {"name": "plain", **plain},
        ],
    }


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ([], 1.0),
        (["model.dtype=bfloat16"], 2.5),
        (["model.dtype=bfloat16", "model.load_in_4bit=true"], 0.5),
    ],
)
def test_a_recipe_is_priced_at_the_speeds_of_its_precision(changes, factor):
    recipe = load_recipe(overrides=changes)
    asked = recipe.fleet.model_copy(update={"source": source({"bfloat16": 2.5, "4bit": 0.5})})
    fleet = fleet_of(recipe.model_copy(update={"fleet": asked}))
    np.testing.assert_allclose(fleet.flops_at(0), 1e11 * np.array([factor, factor, 1.0]))


def test_a_precision_that_is_not_declared_is_said_to_be_taken_as_float32():
    fleet = load_fleet(source({"bfloat16": 2.5}))
    found = fleet.at_precision("float16")
    np.testing.assert_array_equal(found.flops_per_s, fleet.flops_per_s)
    assert "speeds in float16 are taken to be those in float32" in found.assumptions[-1]


@pytest.mark.parametrize(
    ("precision", "message"),
    [({"bf16": 2}, "bf16"), ({"bfloat16": 0}, "precision.bfloat16"), ({}, "must name one of")],
)
def test_a_precision_that_means_nothing_is_refused(precision, message):
    with pytest.raises(FleetError, match=message):
        load_fleet(source(precision))
