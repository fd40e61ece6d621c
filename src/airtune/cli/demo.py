"""`airtune demo`: the first thing to type."""

from __future__ import annotations

from pathlib import Path

from airtune.cli.compare import run_comparison
from airtune.cli.options import AsJson

RECIPE = Path(__file__).resolve().parent.parent / "assets" / "demo.yaml"
"""What is installed; recipes/demo.yaml is a link to it."""


def demo(*, as_json: AsJson = False) -> None:
    """Compare three methods on the shipped model, data and fleet; takes a minute or two.

    Ends with the path of the report. The same as: airtune compare recipes/demo.yaml
    """
    from airtune.recipe import load_recipe

    run_comparison(recipe=load_recipe(RECIPE), as_json=as_json)
