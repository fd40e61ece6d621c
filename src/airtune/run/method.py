"""Which method a recipe asks for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from airtune.errors import RecipeError
from airtune.methods import build_method, method_row, settings_faults
from airtune.methods.paced import MOST_STEPS, Paced
from airtune.model.rules import RULES
from airtune.plan import Method, WorkSpec
from airtune.recipe import Recipe
from airtune.run.controls import CONTROLS, WholeModel
from airtune.run.protection import protected


@dataclass(frozen=True, slots=True)
class Chosen:
    """A method with what a report says of it."""

    method: Method
    label: str
    summary: str
    reconstructed: bool
    is_control: bool = False
    """Carried out by the run itself, without a federation."""


def choose_method(recipe: Recipe, *, label: str | None = None) -> Chosen:
    """Return the method, or the control, that a recipe names.

    Args:
        recipe: checked.
        label: what it is called in reports; None = its name.

    Raises:
        RecipeError: if there is no such method, a setting is wrong, or it cannot do with the
            recipe's upload or protection.
        MethodError: if a method from outside cannot be loaded.
    """
    name = recipe.method.name
    row = method_row(name)
    if name in CONTROLS:
        method = Method(name, WholeModel())
    else:
        method = build_method(name, _settings(recipe))
        method = protected(recipe, method)
        method = replace(method, work=_work(recipe, method.work))
        method = paced(recipe, method)
    check_axes(recipe, method)
    check_async(recipe, method)
    shown = label or name.rpartition(":")[2]
    return Chosen(method, shown, row.summary, row.reconstructed, is_control=name in CONTROLS)


def paced(recipe: Recipe, method: Method) -> Method:
    """Return the method with local steps by a deadline, where the recipe asks for them.

    Raises:
        RecipeError: if its devices may be cut: the two halves of a step wait for each other.
    """
    if recipe.train.steps == "fixed" or method.paces:
        return method
    if method.may_cut:
        raise RecipeError(
            f"train.steps: deadline cannot be used with {method.name}: devices with a cut take "
            "their steps together; use fixed"
        )
    most = MOST_STEPS * recipe.train.local_steps
    return replace(method, decider=Paced(method.decider, most))


def check_axes(recipe: Recipe, method: Method) -> None:
    """Refuse what carries a direction of the adapters over to the next round where there is none.

    Raises:
        RecipeError: if the method's aggregation gives the adapters new axes every round.
    """
    if RULES[method.aggregate.rule].keeps_axes:
        return
    asked = {
        "upload.feedback": recipe.upload.feedback,
        "train.server_momentum": recipe.train.server_momentum,
        "sampling of devices": method.may_sample,
    }
    for key in (key for key, value in asked.items() if value):
        raise RecipeError(
            f"{key} cannot be used with {method.name}: its {method.aggregate.rule} aggregation "
            "gives the adapters new axes every round, in which nothing of the last round's can be "
            f"added; leave {key} out"
        )


def check_async(recipe: Recipe, method: Method) -> None:
    """Refuse asynchronous rounds for a method that needs all of a round together.

    Raises:
        RecipeError: naming the reason.
    """
    aggregate, rule = method.aggregate, method.aggregate.rule
    reasons = {
        "it cuts the model, and the halves of a step wait for each other": method.may_cut,
        "devices keep to a deadline of the round": method.paces or recipe.train.steps != "fixed",
        f"its {rule} aggregation gives the adapters new axes every round": not RULES[
            rule
        ].keeps_axes,
        "what it has pruned stays pruned, round by round": method.work.cumulative
        or aggregate.shrinks
        or aggregate.as_planned,
        "it compares the updates of a round": aggregate.agreement,
        "it asks devices with the probabilities of a round": method.may_sample,
    }
    for reason in (reason for reason, is_so in reasons.items() if is_so):
        if recipe.train.async_buffer:
            raise RecipeError(
                f"train.async_buffer cannot be used with {method.name}: {reason}; leave it out"
            )


def _work(recipe: Recipe, work: WorkSpec) -> WorkSpec:
    """Return a method's local work with what the recipe says of it.

    Raises:
        RecipeError: if a classifier is to learn from a base whose head is fresh.
    """
    asked = recipe.train
    work = work if asked.mend is None else replace(work, mend=asked.mend)
    work = work if asked.distill is None else replace(work, distill=asked.distill)
    if work.distill and recipe.data.task != "causal-lm":
        raise RecipeError(
            f"train.distill {work.distill:g} is for language models: the dense base of a "
            f"{recipe.data.task} task has no trained head to learn from; leave it out"
        )
    return work


def _settings(recipe: Recipe) -> dict[str, object]:
    """Return the method's settings, with the recipe's quality budget where the method has one."""
    settings: dict[str, object] = recipe.method.settings
    budget = recipe.quality_budget
    if budget is None or "quality_budget" in settings:
        return settings
    asked = {**settings, "quality_budget": budget}
    return settings if settings_faults(recipe.method.name, asked) else asked
