"""What a recipe asks of the server against dishonest devices and for privacy."""

from __future__ import annotations

from dataclasses import replace

from airtune.errors import MissingExtraError, RecipeError
from airtune.plan import Method
from airtune.recipe import Recipe

ALIKE = frozenset({"fedavg-lora", "fedprox", "best-bandwidth"})
"""Methods whose devices all train the whole model at one rank."""


def protected(recipe: Recipe, method: Method) -> Method:
    """Return the method with what the recipe's section `protection` adds to its aggregation.

    Raises:
        RecipeError: if the method's updates are of unlike shapes, which the rule compares.
    """
    asked = recipe.protection
    spec = replace(
        method.aggregate,
        clip_norm=asked.clip_norm,
        trim=asked.trim,
        liars=asked.liars,
        noise=asked.noise,
    )
    if asked.aggregate is not None:
        spec = replace(spec, rule=asked.aggregate)
    compares = asked.aggregate or ("noise" if asked.noise else "")
    if compares and method.name not in ALIKE:
        raise RecipeError(
            f"protection: {compares} compares updates number by number, and those of {method.name} "
            f"are of unlike shapes or hold what the server trained; use "
            f"{', '.join(sorted(ALIKE))}, or protection.clip_norm alone"
        )
    if asked.noise:
        epsilon_of(recipe)
    return replace(method, aggregate=spec)


def epsilon_of(recipe: Recipe) -> float | None:
    """Return the epsilon that a whole run spends at the recipe's delta; None without noise.

    Every device is reckoned to take part in every round, and one device's presence, with all its
    data, is what is hidden from those who see the global adapters. The server sees every update.

    Raises:
        MissingExtraError: if the accountant is not installed.
    """
    asked = recipe.protection
    if not asked.noise:
        return None
    try:
        import dp_accounting
        from dp_accounting import pld
    except ImportError as error:
        raise MissingExtraError(
            "protection.noise needs the accountant of dp-accounting; pip install 'airtune[privacy]'"
        ) from error
    accountant = pld.PLDAccountant()
    event = dp_accounting.GaussianDpEvent(asked.noise)
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, recipe.train.rounds))
    return float(accountant.get_epsilon(asked.delta))
