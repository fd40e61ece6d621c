"""`airtune demo`: the first thing to type."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from airtune.cli.compare import run_study
from airtune.cli.options import AsJson

RECIPE = Path(__file__).resolve().parent.parent / "assets" / "demo.yaml"
"""What is installed; recipes/demo.yaml is a link to it."""


def demo(*, as_json: AsJson = False) -> None:
    """Compare three methods on the shipped model, data and fleet; takes a minute or two.

    Ends with the path of the report. The same as: airtune compare recipes/demo.yaml
    """
    from airtune.compare import compare_methods
    from airtune.recipe import load_recipe

    run_study(partial(compare_methods, load_recipe(RECIPE)), as_json=as_json)
