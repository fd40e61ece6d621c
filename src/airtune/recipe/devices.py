"""The fleet that a recipe asks for."""

from __future__ import annotations

from dataclasses import replace

from airtune.fleet import Fleet, load_fleet
from airtune.recipe.schema import Recipe


def fleet_of(recipe: Recipe) -> Fleet:
    """Return the fleet of a recipe, with its devices drawn, at the speeds of the model's precision.

    Raises:
        FleetError: if the fleet is wrong.
    """
    asked = recipe.fleet
    fleet = load_fleet(
        asked.source,
        devices=asked.devices,
        seed=recipe.fleet_seed,
        bandwidth_mhz=asked.bandwidth_mhz,
    ).at_precision("4bit" if recipe.model.load_in_4bit else recipe.model.dtype)
    if asked.availability == 1.0:
        return fleet
    line = (
        f"links are up in {asked.availability:.0%} of the rounds beside that (fleet.availability)"
    )
    return replace(
        fleet,
        availability=fleet.availability * asked.availability,
        assumptions=(*fleet.assumptions, line),
    )
