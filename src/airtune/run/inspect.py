"""What a recipe's data are to its model: rows, classes, lengths in tokens; no weights.

`init` and `plan` look at the data through what a run reads, with all rows on one device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from airtune.data import FederatedData, load_federated
from airtune.data.embedded import EMBEDDED_PREFIX
from airtune.data.spec import DataSpec
from airtune.errors import ModelError
from airtune.model.base import load_class_names
from airtune.model.gguf.source import is_gguf
from airtune.model.images import Images
from airtune.model.source import load_tokenizer
from airtune.plan import Ints
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

    data: FederatedData
    """All rows on one device."""
    lengths: Lengths


def inspect_data(recipe: Recipe) -> Inspection | None:
    """Return what a run of the recipe would read, of at most 10,000 rows.

    Returns:
        None for images, and where data or tokenizer are not on this machine.

    Raises:
        DataError: if the data are missing or malformed.
    """
    if is_vision(recipe) or not is_here(recipe.data):
        return None
    base = base_here(recipe)
    if base is None:
        return None
    tokenizer = load_tokenizer(base)
    made = recipe.data.source.startswith(EMBEDDED_PREFIX)
    most = min(recipe.data.limit or _MOST_ROWS, _MADE_ROWS if made else _MOST_ROWS)
    spec = replace(recipe.data, partition="iid", limit=most)
    data = load_federated(
        spec, tokenizer=tokenizer, devices=1, seed=recipe.seed, known=load_class_names(base)
    )
    return Inspection(data, _lengths(data))


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
    parts = [data.devices[0].train, data.devices[0].validation]
    texts = [part for part in parts if not isinstance(part, Images)]
    counts: Ints = np.array([len(row) for part in texts for row in part.tokens], np.int64)
    longest = max(int(counts.max()), 2)
    return Lengths(
        texts=len(counts),
        mean=float(counts.mean()),
        most=max(int(np.quantile(counts, 0.95, method="higher")), 2),
        longest=longest,
        scored=scored_share([data.devices[0].train], longest),
    )
