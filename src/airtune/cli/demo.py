"""`airtune demo`: the first thing to type."""

from __future__ import annotations

from airtune.cli.compare import run_comparison
from airtune.cli.options import AsJson

DEMO = {
    "name": "demo",
    "train": {"rounds": 12},
    "compare": {"methods": ["jcpba", "best-bandwidth", "fedavg-lora"], "seeds": [0]},
}
"""The embedded default, compared on one seed; recipes/demo.yaml says the same with comments."""


def demo(*, as_json: AsJson = False) -> None:
    """Compare three methods on the shipped model, data and fleet; takes a minute or two.

    Ends with the path of the report. The same as: airtune compare recipes/demo.yaml
    """
    from airtune.recipe import load_recipe

    run_comparison(recipe=load_recipe(DEMO), as_json=as_json)
