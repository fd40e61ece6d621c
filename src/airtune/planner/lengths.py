"""How long a sequence is taken to be: the texts' own lengths, where they can be read."""

from __future__ import annotations

from dataclasses import replace

from airtune.plan import ModelShape, Problem, Workload
from airtune.recipe import Recipe
from airtune.run import longest_input, workload_of
from airtune.run.inspect import Inspection, is_here
from airtune.run.load import is_vision


def planned_workload(recipe: Recipe, shape: ModelShape, found: Inspection | None) -> Workload:
    """Return the workload of a run, which reckons with the longest text that devices train on.

    Raises:
        RecipeError: if the recipe does not fit the model.
    """
    lengths = None if found is None else found.lengths
    if lengths is None:
        return workload_of(recipe, shape, tokens=longest_input(recipe))
    return workload_of(recipe, shape, tokens=lengths.longest, scored=lengths.scored)


def typical_problem(problem: Problem, found: Inspection | None) -> Problem:
    """Return the problem at the tokens that 95 % of the texts do not exceed."""
    lengths = None if found is None else found.lengths
    if lengths is None:
        return problem
    workload, tokens = problem.workload, lengths.most
    # padding is not scored, so a shorter sequence has as many scored tokens
    scored = min(1.0, workload.scored * workload.tokens / tokens)
    return replace(problem, workload=replace(workload, tokens=tokens, scored=scored))


def length_line(recipe: Recipe, found: Inspection | None) -> str:
    """Return what is assumed of a sequence's length."""
    if is_vision(recipe):
        return f"one image is {longest_input(recipe)} tokens for the model"
    lengths = None if found is None else found.lengths
    if lengths is None:
        missing = "the model's tokenizer is" if is_here(recipe.data) else "the data are"
        return (
            f"every sequence is {recipe.data.max_length} tokens long (data.max_length): {missing} "
            "not on this machine"
        )
    return (
        f"planned sequence length: {lengths.most} tokens; texts: {lengths}; memory and "
        "the clock of a run use the longest"
    )
