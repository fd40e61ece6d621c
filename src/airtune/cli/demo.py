"""`airtune demo`: the first thing to type."""

from __future__ import annotations

from airtune.cli.compare import run_comparison
from airtune.cli.options import AsJson

DEMO = {
    "name": "demo",
    "threads": 1,
    "data": {"limit": 1000, "test_limit": 200, "max_length": 128, "partition": "dirichlet",
             "alpha": 1.0},
    "train": {"rounds": 10, "local_steps": 3, "per_device_train_batch_size": 4,
              "learning_rate": 0.005},
    "target": {"metric": "loss", "value": 1.3},
    "calibration": {"rounds": 4, "devices": 4, "budgets": [0.35]},
    "compare": {"methods": ["jcpba", "best-bandwidth", "fedavg-lora"], "seeds": [0]},
}  # fmt: skip
"""The same as recipes/demo.yaml, which is not installed with the package."""


def demo(*, as_json: AsJson = False) -> None:
    """Compare three methods on the shipped model, data and fleet; takes a minute or two.

    Ends with the path of the report. The same as: airtune compare recipes/demo.yaml
    """
    from airtune.recipe import load_recipe

    run_comparison(recipe=load_recipe(DEMO), as_json=as_json)
