"""From YAML and overrides to a checked recipe, and back to a file."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from airtune.errors import MismatchError, RecipeError
from airtune.methods import settings_faults
from airtune.recipe.faults import describe, keys_at, raise_faults, unknown_key
from airtune.recipe.schema import Recipe
from airtune.recipe.words import keep_words, wanted_at

Values = dict[str, Any]

_NAMED = {"method": "name", "model": "source", "data": "source", "fleet": "source"}
"""Sections that may be a word alone, and the key that it stands for."""
_FREE = ("method", "fleet.source", "data.columns", "compare.methods")
"""Mappings whose keys the recipe's own schema does not know."""


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: `3e-4` is a number, a date is text, a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                line = node.value[index][0].start_mark.line + 1
                raise RecipeError(
                    f"key {key!r} is given twice, the second time in line {line}; keep one"
                )
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag != "tag:yaml.org,2002:timestamp"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def load_recipe(
    source: str | Path | Mapping[str, Any] | None = None, *, overrides: Sequence[str] = ()
) -> Recipe:
    """Read a recipe, apply overrides and check it as a whole.

    Args:
        source: a YAML file, a mapping, or None for the embedded default.
        overrides: `a.b=c`, the value as YAML reads it; `method.name` drops the settings of the
            method that it replaces.

    Raises:
        RecipeError: if the file cannot be read, or with every fault of the recipe at once.

    >>> load_recipe(overrides=["train.rounds=3", "lora.r=4"]).train.rounds
    3
    """
    values = _values(source)
    for section in _NAMED:
        if isinstance(values.get(section), str):
            _put(values, [section], values.pop(section))
    name = str(source) if isinstance(source, str | Path) else "recipe"
    return check_recipe(override(values, overrides), name=name)


def check_recipe(values: Mapping[str, Any], *, name: str = "recipe") -> Recipe:
    """Check a recipe in plain values.

    Raises:
        RecipeError: with every fault.
    """
    faults: list[str] = []
    recipe: Recipe | None = None
    try:
        # Strict JSON reading turns lists into tuples and mappings into sections, and nothing else
        # into anything.
        recipe = Recipe.model_validate_json(json.dumps(values))
    except ValidationError as error:
        faults.extend(describe(error, Recipe))
    except TypeError as error:
        faults.append(f"holds a value that is no number, text, list or mapping: {error}")
    faults.extend(_method_faults(values.get("method"), None if recipe is None else recipe.lora.r))
    raise_faults(faults, name)
    if recipe is None:  # pragma: no cover
        raise RecipeError(f"{name} could not be read")
    return recipe


def sent_recipe(
    text: str,
    *,
    where: str = "the recipe cannot be read at the server",
    install: str = "here and there",
) -> Recipe:
    """Return a recipe that came as JSON, from another version of airtune perhaps.

    Args:
        text: as it came.
        where: who cannot read it, for the message; as a server says it by default.
        install: where the same version is to be installed, likewise.

    Raises:
        MismatchError: naming the first key that is not known here or whose value is not.
    """
    try:
        return Recipe.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise MismatchError(
            f"{where}: {key}: {first['msg']}; install the same version of airtune {install}"
        ) from error


def override(values: Mapping[str, Any], overrides: Sequence[str], said: str = "--set") -> Values:
    """Return the values with `a.b=c` applied in order.

    Args:
        values: of a recipe.
        overrides: `a.b=c` each.
        said: with which option they were given, for errors.

    Raises:
        RecipeError: if one is no assignment or names a key that does not exist; all are listed.
    """
    changed: Values = json.loads(json.dumps(values)) if overrides else dict(values)
    faults: list[str] = []
    for text in sorted(
        overrides, key=lambda text: not text.startswith(("method=", "method.name="))
    ):
        path, equals, value = text.partition("=")
        parts = path.strip().split(".")
        if not equals or not all(parts):
            faults.append(f"{text!r}: must be key=value, train.rounds=5 for instance")
            continue
        fault = _unknown_part(parts)
        if fault:
            faults.append(fault)
            continue
        _put(changed, parts, parse_yaml(value, where=text, wanted=wanted_at(Recipe, parts)))
    raise_faults(faults, said)
    return changed


def parse_yaml(text: str, *, where: str, wanted: Any = Recipe) -> Any:
    """Read YAML.

    Args:
        text: what to read.
        where: named in an error.
        wanted: the type that a recipe has here; words stay words where it wants text.

    Raises:
        RecipeError: if it is not YAML; the message says where.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        keep_words(node, wanted)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "unreadable text"
        raise RecipeError(f"{where}: not readable as YAML{at}: {problem}") from error
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML, every key in it."""
    return yaml.safe_dump(recipe.plain(), sort_keys=False, allow_unicode=True, width=100)


def _values(source: str | Path | Mapping[str, Any] | None) -> Values:
    if source is None:
        return {}
    if isinstance(source, Mapping):
        return dict(source)
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(
            f"there is no recipe {str(path)!r}; write one with airtune init"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise RecipeError(f"recipe {str(path)!r} cannot be read: {reason.lower()}") from error
    values = parse_yaml(text, where=str(path))
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise RecipeError(
            f"{path}: a recipe is a mapping of keys to values, got {type(values).__name__}"
        )
    return values


def _method_faults(section: object, rank: int | None) -> list[str]:
    if section is None:
        return []
    if not isinstance(section, Mapping) or not isinstance(section.get("name", "jcpba"), str):
        return []  # the schema has said so
    settings = {str(key): value for key, value in section.items() if key != "name"}
    found = settings_faults(section.get("name", "jcpba"), settings, rank=rank)
    return [f"method.{fault}" for fault in found]


def _unknown_part(parts: Sequence[str]) -> str | None:
    for depth, part in enumerate(parts):
        if depth and ".".join(parts[:depth]) in _FREE:
            return None
        known = keys_at(Recipe, parts[:depth])
        if part not in known:
            if known:
                return unknown_key(tuple(parts[: depth + 1]), Recipe)
            return f"{'.'.join(parts)}: {'.'.join(parts[:depth])} has no keys below it"
    return None


def _put(values: Values, parts: Sequence[str], value: Any) -> None:
    """Set a nested value; changes `values`. A section of `_NAMED` may be a word alone."""
    if len(parts) == 1 and parts[0] in _NAMED and isinstance(value, str):
        parts = [parts[0], _NAMED[parts[0]]]
    if list(parts) == ["method", "name"]:
        same = (values.get("method") or {}).get("name") == value
        if not same:
            values["method"] = {}
    section = values
    for part in parts[:-1]:
        inner = section.get(part)
        if not isinstance(inner, dict):
            inner = section[part] = {}
        section = inner
    section[parts[-1]] = value
