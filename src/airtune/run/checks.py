"""Checks of a run once model, fleet and method are known, before anything is measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from airtune.cost import least_j
from airtune.engine.base import with_work
from airtune.engine.checks import checked_state
from airtune.engine.limits import refuse_energy
from airtune.errors import RecipeError
from airtune.model.base import BaseModel
from airtune.plan import CodecSpec, Method, Problem, mask_problem
from airtune.plan.blame import blamed
from airtune.recipe import Recipe
from airtune.run.build import Pieces
from airtune.run.method import Chosen
from airtune.work.network import wants_means


def check_begin(pieces: Pieces, chosen: Chosen) -> None:
    """Refuse what is sure not to go well.

    Raises:
        RecipeError: if the recipe asks for a mending that the model has no place for, or a setting
            of the method does not fit the model.
        MethodError: if a plug-in fails at its first state.
        InfeasibleError: if no device can keep the limit of energy.
    """
    if not chosen.is_control:
        check_state(pieces.problem, chosen.method)
        check_mend(pieces.recipe, pieces.assets.base, chosen.method)
        check_energy(pieces, chosen)


def check_state(problem: Problem, method: Method) -> None:
    """Ask for the method's first state, which refuses settings that do not fit the problem.

    Raises:
        RecipeError: if one does not.
        MethodError: if a plug-in fails.
    """
    with blamed(method, "init"):
        known = mask_problem(with_work(problem, method.work), method.decider.needs)
        checked_state(method.decider.init(known))


def check_mend(recipe: Recipe, base: BaseModel, method: Method) -> None:
    """Refuse means as biases where the recipe asks for them and the saved model could hold none.

    Raises:
        RecipeError: with what would do.
    """
    if recipe.train.mend == "mean" and not wants_means(base, method.work):
        raise RecipeError(
            f"train.mend: mean adds constants as biases, and a saved {base.network.config.model_type} "
            f"has no place for them, so it would do nothing in {method.name}; take "
            "least-squares, which changes the weights that stay, or none"
        )


def check_energy(pieces: Pieces, chosen: Chosen) -> None:
    """Refuse a limit that no device keeps, whatever the method decides, with the first round's links.

    What the method will tell the devices takes more than that least, so a limit above it may still
    be refused in the first round.

    Raises:
        InfeasibleError: with the least energy that a device could do with, and the device.
    """
    problem, fleet, method = pieces.problem, pieces.assets.fleet, chosen.method
    if problem.joules_per_round is None:
        return
    if method.paces or "steps" in method.wants:
        problem = replace(problem, workload=replace(problem.workload, local_steps=1))
    menu = (CodecSpec(), *(section.spec() for section in pieces.recipe.split.codecs))
    least = least_j(
        replace(problem, work=method.work),
        menu if method.may_cut else (),
        prunes=not method.may_cut or bool({"pruning", "sensitivity"} & method.wants),
        links=fleet.links_at(0, 0, 0.0),
        flops_per_s=fleet.flops_at(0),
    )
    refuse_energy(problem, least, np.flatnonzero(problem.devices.samples > 0))
