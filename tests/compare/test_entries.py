"""Entries of a comparison: a method, and what else of the recipe it changes."""

import pytest

from airtune.compare import entries_of
from airtune.errors import RecipeError
from airtune.recipe import load_recipe


def test_an_entry_sets_other_keys_of_the_recipe_for_itself_alone():
    recipe = load_recipe()
    timed = {"name": "jcpba", "set": {"train.steps": "deadline", "lora.r": 4}, "label": "timed"}
    plain, own = (entry.recipe(recipe, 3) for entry in entries_of(recipe, ["jcpba", timed]))
    assert (own.train.steps, own.lora.r, own.seed) == ("deadline", 4, 3)
    assert (plain.train.steps, plain.lora.r) == (recipe.train.steps, recipe.lora.r)


@pytest.mark.parametrize(("changes", "said"), [
    ({"train.stepz": "deadline"}, "train.stepz: unknown key"),
    ("deadline", "set must map keys of the recipe to values"),
    ({"train.steps": "late"}, "train.steps"),
])  # fmt: skip
def test_a_key_or_value_that_cannot_be_is_refused_before_anything_runs(changes, said):
    with pytest.raises(RecipeError, match=said):
        entries_of(load_recipe(), [{"name": "jcpba", "set": changes, "label": "mine"}])
