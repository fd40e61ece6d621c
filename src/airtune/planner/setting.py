"""What a plan is made from: the recipe's fleet, problem and method, without a weight.

A setting can be put on another fleet or given other rounds, which is how plans are asked backwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from airtune.engine.base import with_work
from airtune.fleet import Fleet
from airtune.plan import Problem
from airtune.planner.control import problem_of_control
from airtune.planner.lengths import planned_workload, typical_problem
from airtune.planner.shape import shape_of
from airtune.recipe import Recipe, fleet_of
from airtune.run import Chosen, check_memory, choose_method, stored_measurements, stored_sensitivity
from airtune.run.build import bare_problem, check_cuts
from airtune.run.inspect import Inspection, inspect_data


@dataclass(frozen=True, slots=True)
class PlanSetting:
    """A recipe with the fleet and the problem that are planned, which may be other than its own."""

    recipe: Recipe
    fleet: Fleet
    problem: Problem
    chosen: Chosen
    found: Inspection | None
    """The data; None where they are not on this machine."""

    @property
    def typical(self) -> Problem:
        """The problem at the usual length of a text; memory is reckoned at the longest."""
        return typical_problem(self.problem, self.found)

    @property
    def participation(self) -> float:
        """The part of the devices that a round asks."""
        return 1.0 if self.chosen.is_control else self.recipe.fleet.participation

    def on(self, fleet: Fleet) -> PlanSetting:
        """Return the setting on a fleet of as many devices; those never there hold no data.

        Raises:
            InfeasibleError: if no device of it has the memory.
        """
        held = np.where(fleet.availability > 0.0, self.problem.devices.samples, 0)
        method = self.chosen.method
        problem = replace(
            self.problem,
            devices=fleet.profiles(held),
            server_flops_per_s=fleet.server.flops_per_s,
            server_memory_bytes=fleet.server.memory_bytes,
        )
        check_memory(problem, fleet, method.name, may_cut=method.may_cut)
        return replace(self, fleet=fleet, problem=problem)

    def for_rounds(self, rounds: int) -> PlanSetting:
        """Return the setting of a run of so many rounds."""
        visits = self.problem.devices.samples * rounds // self.problem.rounds
        devices = replace(self.problem.devices, samples=visits)
        return replace(self, problem=replace(self.problem, rounds=rounds, devices=devices))


def setting_of(recipe: Recipe, found: Inspection | None = None) -> PlanSetting:
    """Return what a plan of a recipe is made from.

    Args:
        recipe: checked.
        found: its data, where another plan has looked at them; None = look.

    Raises:
        ModelError: if the model's config cannot be found.
        FleetError: if the fleet is wrong.
        RecipeError: if a value does not fit the model.
        InfeasibleError: if no device has the memory for any pruning.
    """
    found = inspect_data(recipe) if found is None else found
    shape = shape_of(recipe, classes=0 if found is None else len(found.labels))
    check_cuts(recipe, shape)
    fleet, workload = fleet_of(recipe), planned_workload(recipe, shape, found)
    chosen = choose_method(recipe)
    visits = recipe.train.rounds * workload.local_steps * workload.batch
    problem = bare_problem(recipe, shape, workload, fleet, np.full(len(fleet), visits))
    problem = replace(
        with_work(problem, chosen.method.work),
        server_memory_bytes=fleet.server.memory_bytes,
        sensitivity=stored_sensitivity(recipe, chosen),
    ).with_measurements(stored_measurements(recipe, chosen))
    check_memory(problem, fleet, recipe.method.name, may_cut=chosen.method.may_cut)
    problem = problem_of_control(chosen, problem) if chosen.is_control else problem
    return PlanSetting(recipe, fleet, problem, chosen, found)
