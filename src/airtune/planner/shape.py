"""Finding a model's shape without a weight."""

from __future__ import annotations

from pathlib import Path

from airtune.cost import known_shapes
from airtune.data import EMBEDDED_MODEL, SHAPES, TOPICS
from airtune.errors import ModelError
from airtune.model.base import load_shape
from airtune.model.gguf.source import is_gguf
from airtune.plan import ModelShape
from airtune.recipe import EMBEDDED, Recipe
from airtune.run.load import model_source

_SHIPPED_CLASSES = {TOPICS: 8, SHAPES: 10}
_CLASSES = 2
"""Labels assumed where the recipe does not list them."""


def shape_of(recipe: Recipe, *, classes: int = 0) -> ModelShape:
    """Return the shape of a recipe's model, without a weight.

    Args:
        recipe: checked.
        classes: how many the data have; 0 = as the recipe says, or a guess.

    Raises:
        ModelError: if its config cannot be found.
    """
    labels = 0
    if recipe.data.task != "causal-lm":
        labels = (
            classes or len(recipe.data.labels) or _SHIPPED_CLASSES.get(recipe.data.source, _CLASSES)
        )
    source = model_source(recipe)
    if recipe.model.source == EMBEDDED:
        return load_shape(source, labels=labels)
    return find_shape(source, labels=labels, revision=recipe.model.revision)


def find_shape(model: str, *, labels: int = 0, revision: str | None = None) -> ModelShape:
    """Return a shape from a folder, from the published ones, or from a config on the hub.

    Raises:
        ModelError: if there is none.
    """
    if model == EMBEDDED:
        return load_shape(EMBEDDED_MODEL, labels=labels)
    if is_gguf(model) or Path(model).is_dir():
        return load_shape(model, labels=labels, revision=revision)
    shapes = known_shapes()
    name = model.rpartition("/")[2].lower().removesuffix("-hf").removesuffix("-instruct")
    if name in shapes and (labels == shapes[name].labels or not labels):
        return shapes[name]
    try:
        return load_shape(model, labels=labels, revision=revision)
    except ModelError as error:
        raise ModelError(f"{error}; known without a download: {', '.join(shapes)}") from error
