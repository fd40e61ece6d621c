"""What the server knows of the data: class names and a test set; never the devices' own rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from airtune.data import DeviceData, FederatedData, load_federated, load_federated_images
from airtune.data.ledger import RowCounts
from airtune.data.samples import TextRows
from airtune.errors import RecipeError
from airtune.model.base import load_class_names
from airtune.model.batch import Sequences
from airtune.model.frame import load_frame
from airtune.model.images import Examples
from airtune.plan import Ints
from airtune.recipe import ON_DEVICE, Recipe
from airtune.run.load import is_vision, model_source, read_tokenizer


@dataclass(frozen=True, slots=True)
class Known:
    """What the server has."""

    source: str
    labels: tuple[str, ...]
    test: Examples
    prompts: tuple[tuple[Ints, str], ...] = ()
    rows: RowCounts = field(default_factory=RowCounts)
    """Of the test set."""
    samples: TextRows = field(default_factory=TextRows)
    """A few rows of it."""

    def nothing(self, devices: int) -> tuple[DeviceData, ...]:
        """Return the devices' data as the server has them: not at all."""
        none = Sequences((), (), 0)
        return (DeviceData(none, none),) * devices


def load_known(recipe: Recipe) -> Known:
    """Load what the server may know.

    Where the recipe names a source that the server can read, classes and test set are that
    source's. Where every device has its own, classes come from `data.labels` and the test set from
    `data.test`, if it is named.

    Raises:
        RecipeError: if the classes are nowhere.
        DataError: if what is named cannot be read.
    """
    spec = recipe.data
    if spec.source != ON_DEVICE:
        found = _load(recipe)
        return _known(spec.source, found)
    if spec.task != "causal-lm" and not spec.labels:
        raise RecipeError(
            "data.labels must name the classes in order where every device has its own data"
        )
    if spec.test is None:
        empty = np.empty(0, np.int64) if spec.task != "causal-lm" else ()
        return Known(ON_DEVICE, spec.labels, Sequences((), empty, 0))
    path = str(Path(spec.test).expanduser())
    found = _load(recipe.model_copy(update={"data": replace(spec, source=path, test=path)}))
    return replace(_known(ON_DEVICE, found), labels=spec.labels)


def _known(source: str, found: FederatedData) -> Known:
    return Known(
        source, found.labels, found.test, found.test_prompts, found.ledger.test, found.samples
    )


def _load(recipe: Recipe) -> FederatedData:
    source, revision = model_source(recipe), recipe.model.revision
    spec = replace(recipe.data, partition="iid")
    known = load_class_names(source, revision=revision)
    if is_vision(recipe):
        frame = load_frame(source, revision=revision)
        return load_federated_images(spec, frame=frame, devices=1, seed=recipe.seed, known=known)
    return load_federated(
        spec, tokenizer=read_tokenizer(recipe), devices=1, seed=recipe.seed, known=known
    )
