"""airtune: fine-tuning of language models over wireless fleets of unequal devices.

The public names are those in `__all__`. Each is loaded when it is first used, so that importing the
package is fast and loads no torch.

    >>> import airtune
    >>> recipe = airtune.load_recipe(overrides=["train.rounds=3"])
    >>> recipe.train.rounds
    3
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airtune.compare import compare_methods, sweep_recipe
    from airtune.errors import AirtuneError
    from airtune.fleet import load_fleet
    from airtune.methods import check_method
    from airtune.planner import plan_model, plan_recipe
    from airtune.recipe import Recipe, load_recipe
    from airtune.records import read_run
    from airtune.report import write_report
    from airtune.run import export_run, resume_run, run_recipe

_HOMES = {
    "AirtuneError": "errors",
    "Recipe": "recipe",
    "check_method": "methods",
    "compare_methods": "compare",
    "export_run": "run",
    "load_fleet": "fleet",
    "load_recipe": "recipe",
    "plan_model": "planner",
    "plan_recipe": "planner",
    "read_run": "records",
    "resume_run": "run",
    "run_recipe": "run",
    "sweep_recipe": "compare",
    "write_report": "report",
}
"""Name -> module that holds it."""

__all__ = [
    "AirtuneError",
    "Recipe",
    "check_method",
    "compare_methods",
    "export_run",
    "load_fleet",
    "load_recipe",
    "plan_model",
    "plan_recipe",
    "read_run",
    "resume_run",
    "run_recipe",
    "sweep_recipe",
    "write_report",
]


def __getattr__(name: str) -> object:
    """Load a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'airtune' has no attribute {name!r}")
    return getattr(import_module(f"airtune.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
