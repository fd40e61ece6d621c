"""The composition root: a recipe becomes objects here and nowhere else, and they are run."""

from airtune.run.build import Pieces, build_pieces, check_memory, workload_of
from airtune.run.execute import (
    RunResult,
    Watch,
    calibrate_recipe,
    problem_of,
    resume_run,
    run_recipe,
)
from airtune.run.export import export_run
from airtune.run.folders import new_folder, saved_recipe
from airtune.run.load import Assets, load_assets, longest_input
from airtune.run.measurement import stored_measurements, tables_of
from airtune.run.method import Chosen, choose_method
from airtune.run.prune import PrunedBase, prune_base
from airtune.run.sensitivity import known_sensitivity, remembered_sensitivity, stored_sensitivity

__all__ = [
    "Assets",
    "Chosen",
    "Pieces",
    "PrunedBase",
    "RunResult",
    "Watch",
    "build_pieces",
    "calibrate_recipe",
    "check_memory",
    "choose_method",
    "export_run",
    "known_sensitivity",
    "load_assets",
    "longest_input",
    "new_folder",
    "problem_of",
    "prune_base",
    "remembered_sensitivity",
    "resume_run",
    "run_recipe",
    "saved_recipe",
    "stored_measurements",
    "stored_sensitivity",
    "tables_of",
    "workload_of",
]
