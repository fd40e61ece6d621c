"""What a study compares: a label each, with what it changes in the recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from typing import Any

from airtune.errors import RecipeError
from airtune.methods import list_methods
from airtune.methods.plugins import is_path
from airtune.recipe import Recipe, check_recipe, override, parse_yaml
from airtune.run.folders import places_of

_PLAIN_BASELINE = "fedavg-lora"
_OF_THE_STUDY = frozenset({"output", "name", "compare"})
"""Keys that a sweep's runs cannot differ in: they say where the study lies and what it runs."""

CompareRow = str | Mapping[str, Any]
"""A method of a comparison: its name, or its name with settings and perhaps a label."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One setting of a study."""

    label: str
    values: Mapping[str, Any]
    """Key of the recipe, with dots -> value; `method` stands for the whole section."""

    @property
    def folder_name(self) -> str:
        """The label as part of a folder's name."""
        return re.sub(r"[^\w.+-]+", "-", self.label).strip("-")

    def recipe(self, recipe: Recipe, seed: int) -> Recipe:
        """Return the recipe of its run with a seed.

        Raises:
            RecipeError: if a key does not exist or a value is wrong.
        """
        changes = [f"{key}={json.dumps(value)}" for key, value in self.values.items()]
        values = override({**recipe.plain(), "seed": seed}, changes)
        return check_recipe(values, name=self.label)

    def placed(self, recipe: Recipe) -> Entry:
        """Return it with the full path of every file that its values name here."""
        try:
            places = places_of(self.recipe(recipe, recipe.seed))
        except RecipeError:  # the matter of its own run
            return self
        values = dict(self.values)
        for key, place in places.items():
            section, _, last = key.partition(".")
            if key in values:
                values[key] = place
            elif isinstance(values.get(section), Mapping) and last in values[section]:
                values[section] = {**values[section], last: place}
        return Entry(self.label, values)


def rows_of(recipe: Recipe, methods: Sequence[CompareRow]) -> list[CompareRow]:
    """Return the rows that were asked for: of the recipe's `compare.methods` by label, others by name.

    Args:
        recipe: its rows can be asked for; a label goes before a method of the same name.
        methods: labels of rows, names of methods, or rows of their own.

    Raises:
        RecipeError: if a text is neither the label of a row nor a method; all are listed.
    """
    own = {_labelled(row)[0]: row for row in recipe.compare.methods}
    known = list_methods()
    faults = [
        _unknown(text, list(own), list(known))
        for text in methods
        if isinstance(text, str) and text not in own and text not in known and not is_path(text)
    ]
    if faults:
        raise RecipeError("\n".join(faults))
    return [own.get(row, row) if isinstance(row, str) else row for row in methods]


def _unknown(text: str, labels: Sequence[str], names: Sequence[str]) -> str:
    near = get_close_matches(text, [*labels, *names], n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return (
        f"--methods: {text!r} is neither a row of the recipe nor a method{hint} The rows "
        f"(compare.methods) are {'; '.join(labels)}. The methods are {', '.join(names)}. A file is "
        "given as ./mine.py:Mine"
    )


def entries_of(recipe: Recipe, methods: Sequence[CompareRow]) -> list[Entry]:
    """Return the methods of a comparison, each with a label of its own.

    Raises:
        RecipeError: if a method has no name, two have one label, or a setting is wrong.
    """
    own = {"name": recipe.method.name, **recipe.method.settings}
    entries = []
    for method in methods:
        label, values = _labelled(method)
        upload = values.pop("upload", None)
        others = values.pop("set", {})
        if not isinstance(others, dict):
            raise RecipeError(
                "compare.methods: set must map keys of the recipe to values, "
                f"{{train.steps: deadline}} for instance, got {others!r}"
            )
        mine = own if values == {"name": own["name"]} else values
        changes = {"method": mine} | ({"upload": upload} if upload else {}) | others
        entries.append(Entry(label, changes))
    labels = [entry.label for entry in entries]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise RecipeError(f"compare.methods: {twice[0]!r} is given twice; give one of them a label")
    faults = []
    for entry in entries:
        try:
            entry.recipe(recipe, recipe.seed)
        except RecipeError as error:
            faults.append(str(error))
    if faults:
        raise RecipeError("\n".join(faults))
    return entries


def swept(recipe: Recipe, over: Sequence[str]) -> tuple[list[Entry], list[int]]:
    """Return every combination of the values of some keys, and the seeds among them.

    Args:
        recipe: what they change.
        over: `a.b=1,2,4` each; a value with a comma in it stands in brackets or quotes.

    Raises:
        RecipeError: if one is no such list, or a key does not exist. A value that is wrong is the
            matter of its own run.
    """
    keys: dict[str, list[Any]] = {}
    for text in over:
        key, equals, values = text.partition("=")
        found = parse_yaml(f"[{values}]", where=text) if equals and values.strip() else []
        if not found:
            raise RecipeError(f"--over {text!r}: must be key=value,value, lora.r=4,8 for instance")
        if len({json.dumps(value) for value in found}) < len(found):
            raise RecipeError(f"--over {text!r}: a value is given twice")
        if key.strip().partition(".")[0] in _OF_THE_STUDY:
            raise RecipeError(f"--over {text!r}: is for the whole study; give it by --set {text}")
        keys[key.strip()] = found
    seeds = keys.pop("seed", [])
    if not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise RecipeError(f"--over seed: must be whole numbers from 0 on, got {seeds}")
    override(
        recipe.plain(), [f"{key}={json.dumps(values[0])}" for key, values in keys.items()], "--over"
    )
    cells = [dict(zip(keys, chosen, strict=True)) for chosen in product(*keys.values())]
    return [Entry(_cell_label(cell, keys, recipe), cell) for cell in cells], seeds


def baseline_of(recipe: Recipe, entries: Sequence[Entry], *, is_narrowed: bool = False) -> str:
    """Return the label that the others are compared with.

    Args:
        recipe: says which, or leaves it open.
        entries: what is compared.
        is_narrowed: they were asked for beside the recipe, so its baseline need not be among them.

    Raises:
        RecipeError: if the recipe names one that is not compared.
    """
    labels = [entry.label for entry in entries]
    asked = recipe.compare.baseline
    if asked is None or (is_narrowed and asked not in labels):
        return _PLAIN_BASELINE if _PLAIN_BASELINE in labels else labels[0]
    if asked not in labels:
        raise RecipeError(
            f"compare.baseline must be one of the methods compared, {', '.join(labels)}, got "
            f"{asked!r}"
        )
    return asked


def _labelled(row: CompareRow) -> tuple[str, dict[str, Any]]:
    """Return the label of a row, given or made, and what else it says.

    Raises:
        RecipeError: if it has no name.
    """
    values: dict[str, Any] = {"name": row} if isinstance(row, str) else dict(row)
    if not isinstance(values.get("name"), str):
        raise RecipeError(f"compare.methods: every entry needs a name, got {row!r}")
    return str(values.pop("label", "")) or _label(values), values


def _label(values: Mapping[str, Any]) -> str:
    name = str(values["name"]).rpartition(":")[2]
    settings = ", ".join(f"{key}={value}" for key, value in values.items() if key != "name")
    return f"{name} ({settings})" if settings else name


def _cell_label(cell: Mapping[str, Any], keys: Mapping[str, Sequence[Any]], recipe: Recipe) -> str:
    """Name a combination by the keys that vary; a method by its name alone."""
    ends = [key.rpartition(".")[2] for key in keys]
    parts = []
    for key, value in cell.items():
        end = key.rpartition(".")[2]
        if key == "method.name":
            parts.append(str(value).rpartition(":")[2])
        elif len(keys[key]) > 1:
            parts.append(f"{end if ends.count(end) == 1 else key}={_shown(value)}")
    return ", ".join(parts) or recipe.label


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
