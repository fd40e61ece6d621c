"""Entries of a comparison: a method, and what else of the recipe it changes."""

import pytest

from airtune.cli.compare import read_rows
from airtune.compare import entries_of, rows_of
from airtune.errors import RecipeError
from airtune.recipe import check_recipe, load_recipe


def test_an_entry_sets_other_keys_of_the_recipe_for_itself_alone():
    recipe = load_recipe()
    timed = {"name": "jcpba", "set": {"train.steps": "deadline", "lora.r": 4}, "label": "timed"}
    plain, own = (entry.recipe(recipe, 3) for entry in entries_of(recipe, ["jcpba", timed]))
    assert (own.train.steps, own.lora.r, own.seed) == ("deadline", 4, 3)
    assert (plain.train.steps, plain.lora.r) == (recipe.train.steps, recipe.lora.r)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train.stepz": "deadline"}, "train.stepz: unknown key"),
        ("deadline", "set must map keys of the recipe to values"),
        ({"train.steps": "late"}, "train.steps"),
    ],
)
def test_a_key_or_value_that_cannot_be_is_refused_before_anything_runs(changes, said):
    with pytest.raises(RecipeError, match=said):
        entries_of(load_recipe(), [{"name": "jcpba", "set": changes, "label": "mine"}])


ROWS = [
    "sft",
    {"name": "sft", "codec": "none", "label": "sft, coded by nothing"},
    {"name": "jcpba", "solver": "bcd"},
]


def with_rows(rows):
    values = load_recipe().plain()
    return check_recipe(values | {"compare": {"methods": rows}})


def test_rows_of_the_recipe_are_asked_for_by_label_and_others_by_name():
    asked = read_rows('"sft, coded by nothing", jcpba (solver=bcd),fedavg-lora,sft')
    assert rows_of(with_rows(ROWS), asked) == [ROWS[1], ROWS[2], "fedavg-lora", "sft"]


def test_a_label_goes_before_a_method_of_that_name():
    row = {"name": "jcpba", "solver": "bcd", "label": "sft"}
    assert rows_of(with_rows([row]), ["sft"]) == [row]


def test_what_is_no_row_and_no_method_is_refused_with_both_lists():
    with pytest.raises(RecipeError) as caught:
        rows_of(with_rows(ROWS), ["sft", "sft coded by nothing", "nothing"])
    said = str(caught.value)
    assert "'sft coded by nothing' is neither" in said
    assert "'nothing' is neither" in said
    assert "did you mean sft, coded by nothing?" in said
    assert "compare.methods) are sft; sft, coded by nothing; jcpba (solver=bcd)" in said
    assert "fedspine" in said
