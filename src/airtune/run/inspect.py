"""What a recipe's data are to its model: rows, classes, lengths in tokens; no weights.

`init` and `plan` look at the data through what a run reads, with all rows on one device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from airtune.data import FederatedData, load_federated
from airtune.data.embedded import EMBEDDED_PREFIX
from airtune.data.intake import take_in
from airtune.data.ledger import DataLedger
from airtune.data.spec import DataSpec
from airtune.errors import ModelError
from airtune.model.base import load_class_names
from airtune.model.batch import Sequences
from airtune.model.gguf.source import is_gguf
from airtune.model.images import Examples, Images
from airtune.model.source import load_tokenizer
from airtune.recipe import Recipe
from airtune.run.build import scored_share
from airtune.run.load import base_folder, is_vision, model_source

_MOST_ROWS = 10_000
"""Rows that are looked at; more are drawn by seed."""
_MADE_ROWS = 500
"""Rows of embedded data that are looked at."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of the texts that devices train on, as the model reads them."""

    texts: int
    mean: float
    most: int
    """Tokens that 95 % of the texts do not exceed."""
    longest: int
    test_longest: int
    """Tokens of the longest text of the test."""
    scored: float
    """Fraction of positions whose loss counts, where every text is as long as the longest."""

    def __str__(self) -> str:
        return (
            f"mean {self.mean:.0f}, 95 % up to {self.most}, longest {self.longest} tokens "
            f"({self.texts:,} texts)"
        )


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found."""

    rows: int
    """For training and validation."""
    test_rows: int
    labels: tuple[str, ...]
    """Names of the classes in the order of their ids; empty for causal-lm."""
    ledger: DataLedger
    lengths: Lengths | None
    """None of images."""


def inspect_data(recipe: Recipe) -> Inspection | None:
    """Return what a run of the recipe would read, of at most 10,000 rows of text.

    Images are counted and not decoded.

    Returns:
        None for embedded images, and where data or tokenizer are not on this machine.

    Raises:
        DataError: if the data are missing or malformed.
    """
    base = base_here(recipe) if is_here(recipe.data) else None
    if base is None:
        return None
    known = load_class_names(base)
    made = recipe.data.source.startswith(EMBEDDED_PREFIX)
    if is_vision(recipe):
        return None if made else _inspected_images(recipe, known)
    most = min(recipe.data.limit or _MOST_ROWS, _MADE_ROWS if made else _MOST_ROWS)
    spec = replace(recipe.data, partition="iid", limit=most)
    tokenizer = load_tokenizer(base)
    data = load_federated(spec, tokenizer=tokenizer, devices=1, seed=recipe.seed, known=known)
    lengths = _lengths(data)
    return Inspection(lengths.texts, len(data.test), data.labels, data.ledger, lengths)


def _inspected_images(recipe: Recipe, known: Sequence[str]) -> Inspection:
    found = take_in(recipe.data, seed=recipe.seed, known=known)
    names = tuple(found.classes.values())
    return Inspection(len(found.train), len(found.test), names, found.ledger, None)


def base_here(recipe: Recipe) -> Path | None:
    """Return the folder or file of a recipe's base; None where a hub id is not on this machine.

    Raises:
        ModelError: if it was meant as a path and nothing is there.
    """
    source = model_source(recipe)
    if is_gguf(source):
        return Path(source)
    try:
        return base_folder(recipe)
    except ModelError:
        return None


def is_here(spec: DataSpec) -> bool:
    """Say whether data can be read without a network."""
    return spec.source.startswith(EMBEDDED_PREFIX) or Path(spec.source).expanduser().exists()


def _lengths(data: FederatedData) -> Lengths:
    device = data.devices[0]
    counts, tested = (
        np.array([len(row) for part in parts for row in part.tokens], np.int64)
        for parts in (_texts(device.train, device.validation), _texts(data.test))
    )
    longest = max(int(counts.max()), 2)
    return Lengths(
        texts=len(counts),
        mean=float(counts.mean()),
        most=max(int(np.quantile(counts, 0.95, method="higher")), 2),
        longest=longest,
        test_longest=int(tested.max(initial=0)),
        scored=scored_share([data.devices[0].train], longest),
    )


def _texts(*parts: Examples) -> list[Sequences]:
    return [part for part in parts if not isinstance(part, Images)]
