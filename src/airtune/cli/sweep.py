"""`airtune sweep`: every combination of the values of some keys of a recipe."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from airtune.cli.compare import Jobs, Name, Resume, Seeds, begun, read_seeds, run_study
from airtune.cli.options import AsJson, Settings, split_words
from airtune.errors import RecipeError
from airtune.recipe import load_recipe


def sweep(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE,VALUE]...",
            help="A recipe file (default: the embedded one) and more keys to sweep over.",
            show_default=False,
        ),
    ] = None,
    *,
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,VALUE", help="Sweep over a key of the recipe; may be repeated."
        ),
    ] = None,
    seeds: Seeds = None,
    settings: Settings = None,
    resume: Resume = None,
    name: Name = None,
    jobs: Jobs = 1,
    as_json: AsJson = False,
) -> None:
    """Run every combination of the values of some keys, with every seed, as one study.

    Example: airtune sweep recipe.yaml --over fleet.bandwidth_mhz=1,2,4 method.name=auto,sft --jobs 2
    """
    from airtune.compare import sweep_recipe

    source, keys = split_words(words, over)
    asked: dict[str, Any] = {"over": keys, "seeds": read_seeds(seeds) if seeds else []}
    if resume is not None:
        run_study(begun(resume, source or name, settings or [], asked), jobs=jobs, as_json=as_json)
        return
    if not keys:
        raise RecipeError("nothing to sweep over; add --over lora.r=4,8 for instance")
    recipe = load_recipe(source, overrides=[*(settings or []), *([f"name={name}"] if name else [])])
    run_study(lambda **how: sweep_recipe(recipe, **asked, **how), jobs=jobs, as_json=as_json)
