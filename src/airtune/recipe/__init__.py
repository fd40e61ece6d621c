"""Recipes: one YAML file describes a whole run."""

from airtune.recipe.devices import fleet_of
from airtune.recipe.read import (
    check_recipe,
    dump_recipe,
    load_recipe,
    override,
    parse_yaml,
    sent_recipe,
)
from airtune.recipe.schema import EMBEDDED, ON_DEVICE, Recipe
from airtune.recipe.template import commented_recipe, default_fleet

__all__ = [
    "EMBEDDED",
    "ON_DEVICE",
    "Recipe",
    "check_recipe",
    "commented_recipe",
    "default_fleet",
    "dump_recipe",
    "fleet_of",
    "load_recipe",
    "override",
    "parse_yaml",
    "sent_recipe",
]
