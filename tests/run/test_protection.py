"""A recipe asks for protection; what cannot be given is refused when it is read."""

import pytest

from airtune.errors import RecipeError
from airtune.recipe import load_recipe
from airtune.run import choose_method
from airtune.run.protection import epsilon_of


def recipe(*changes):
    return load_recipe(overrides=list(changes))


def test_a_recipe_chooses_rule_and_norm():
    made = choose_method(
        recipe("method.name=fedavg-lora", "protection={clip_norm: 2.0, aggregate: krum, liars: 2}")
    )
    assert made.method.aggregate.rule == "krum"
    assert (made.method.aggregate.clip_norm, made.method.aggregate.liars) == (2.0, 2)


def test_clipping_is_for_every_method():
    made = choose_method(recipe("method.name=jcpba", "protection.clip_norm=2.0"))
    assert made.method.aggregate.clip_norm == 2.0


@pytest.mark.parametrize("method", ["jcpba", "fedspine", "hetlora", "flora"])
def test_rules_that_compare_numbers_are_refused_for_unlike_shapes(method):
    with pytest.raises(RecipeError, match="unlike shapes"):
        choose_method(recipe(f"method.name={method}", "protection.aggregate=trimmed-mean"))


@pytest.mark.parametrize(
    "asked", ["{noise: 1.0}", "{noise: 1.0, clip_norm: 1.0, aggregate: krum}", "{trim: 0.5}"]
)
def test_what_makes_no_sense_is_refused(asked):
    with pytest.raises(RecipeError, match="protection"):
        recipe(f"protection={asked}")


def test_the_accountant_says_what_a_run_spends():
    pytest.importorskip("dp_accounting", reason="pip install 'airtune[privacy]'")
    asked = "protection={{clip_norm: 1.0, noise: {}}}"
    one, more = (
        epsilon_of(recipe("method.name=fedavg-lora", "train.rounds=20", asked.format(noise)))
        for noise in (1.0, 4.0)
    )
    assert one == pytest.approx(28.37, abs=0.1)
    assert more < one / 3
    assert epsilon_of(recipe()) is None
