"""Errors of a recipe for the person who wrote it: all of them, each with its key."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from airtune.errors import RecipeError

Path = tuple[str | int, ...]
Wording = Callable[[Mapping[str, Any]], str]

_UNKNOWN = frozenset({"extra_forbidden", "unexpected_keyword_argument"})
_ELSEWHERE: Mapping[str, str] = {
    "rank": "lora.r", "alpha": "lora.lora_alpha", "dropout": "lora.lora_dropout",
    "lr": "train.learning_rate", "batch_size": "train.per_device_train_batch_size",
    "epochs": "train.local_steps", "local_epochs": "train.local_steps",
    "num_rounds": "train.rounds", "max_steps": "train.rounds",
    "max_seq_length": "data.max_length", "max_seq_len": "data.max_length",
    "dataset": "data.source", "model_name_or_path": "model.source",
    "num_clients": "fleet.devices", "clients": "fleet.devices",
}  # fmt: skip
"""What other tools call a key."""
_WORDING: Mapping[str, Wording] = {
    "greater_than": lambda c: f"must be above {c['gt']:g}",
    "greater_than_equal": lambda c: f"must be at least {c['ge']:g}",
    "less_than": lambda c: f"must be below {c['lt']:g}",
    "less_than_equal": lambda c: f"must be at most {c['le']:g}",
    "int_type": lambda c: "must be a whole number",
    "int_from_float": lambda c: "must be a whole number",
    "float_type": lambda c: "must be a number",
    "finite_number": lambda c: "must be a finite number",
    "bool_type": lambda c: "must be true or false",
    "string_type": lambda c: "must be text",
    "string_too_short": lambda c: "must not be empty",
    "too_short": lambda c: f"needs at least {c['min_length']} entry",
    "tuple_type": lambda c: "must be a list, [a, b]",
    "dict_type": lambda c: "must be a mapping, {key: value}",
    "literal_error": lambda c: f"must be {str(c['expected']).replace(chr(39), '')}",
    "string_pattern_mismatch": lambda c: f"must match {c['pattern']}",
    "missing": lambda c: "is missing",
}


def raise_faults(faults: Sequence[str], source: str) -> None:
    """Raise one error with every fault, or nothing if there is none.

    Raises:
        RecipeError: if there is a fault.
    """
    if len(faults) == 1:
        raise RecipeError(f"{source}: {faults[0]}")
    if faults:
        listed = "\n  ".join(faults)
        raise RecipeError(f"{source} has {len(faults)} faults:\n  {listed}")


def describe(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return one line a fault: dotted key, what is allowed, the value."""
    lines: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        path = _without_unions(detail["loc"])
        key = ".".join(map(str, path)) or "recipe"
        line = _line(key, detail, path, model)
        # A value that may have one of several types gives a fault for each; one line says it.
        lines[key] = (
            f"{lines[key]} or {_allowed(detail)}, got {_show(detail['input'])}"
            if (key in lines and detail["type"] in _WORDING)
            else line
        )
    # A list is said to be too short when its entries are wrong; the entries are what to mend.
    hollow = [key for key in lines if any(other.startswith(f"{key}.") for other in lines)]
    return [_tidy(line) for key, line in lines.items() if key not in hollow]


def unknown_key(path: Path, model: type[BaseModel]) -> str:
    """Return the fault of a key that does not exist, with the nearest that does.

    A key that another section has, or the recipe itself, is named with its section. A key of
    another tool is answered with the one that means the same.
    """
    names = sorted(keys_at(model, path[:-1]))
    key = str(path[-1])
    sections = [name for name in _keys(model) if key in keys_at(model, [name])]
    places = [key] * (key in _keys(model)) + [f"{section}.{key}" for section in sections]
    if (meant := _ELSEWHERE.get(key)) is not None:
        is_here = path[:-1] == (meant.partition(".")[0],)
        places = [meant] if is_here else [*places, meant]
    near = places or difflib.get_close_matches(key, names, 1)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known here: {', '.join(names)}"
    return f"{'.'.join(map(str, path))}: unknown key, {hint}"


def keys_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """Return the keys of the section that `path` leads to from `model`."""
    section: type = model
    for part in path:
        section = _section_of(section, str(part))
    return _keys(section)


def _line(key: str, detail: Any, path: Path, model: type[BaseModel]) -> str:
    if detail["type"] in _UNKNOWN:
        return unknown_key(path, model)
    if detail["type"] == "value_error":
        message = str(detail["ctx"]["error"])
        return message if key == "recipe" else f"{key}: {message.removeprefix(f'{key}: ')}"
    if detail["type"] == "missing":
        return f"{key}: is missing"
    return f"{key}: {_allowed(detail)}, got {_show(detail['input'])}"


def _allowed(detail: Any) -> str:
    wording = _WORDING.get(detail["type"])
    if wording is not None:
        return wording(detail.get("ctx") or {})
    if detail["type"] in ("model_type", "model_attributes_type", "dataclass_type"):
        return "must be a section with keys of its own"
    return str(detail["msg"]).removesuffix(".").lower()


def _tidy(line: str) -> str:
    """Join `must be text, got 3 or must be a mapping, got 3` into one clause."""
    head, separator, rest = line.partition(" or must be ")
    if not separator:
        return line
    return f"{head.rpartition(', got ')[0]} or {rest.removeprefix('must be ')}"


def _show(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _without_unions(path: Path) -> Path:
    """Drop what pydantic adds to a path to name the branch of a union."""
    branches = ("str", "int", "float", "dict", "tuple", "literal", "function")
    return tuple(
        part
        for part in path
        if not (isinstance(part, str) and part.partition("[")[0] in branches and part != path[0])
    )


def _keys(section: type) -> list[str]:
    if isinstance(section, type) and issubclass(section, BaseModel):
        return list(section.model_fields)
    if is_dataclass(section):
        return [entry.name for entry in fields(section)]
    return []


def _section_of(section: type, key: str) -> type:
    if not (isinstance(section, type) and issubclass(section, BaseModel)):
        return object
    annotation: Any = (
        section.model_fields[key].annotation if key in section.model_fields else object
    )
    options = [annotation, *get_args(annotation)]
    return next(
        (option for option in options if isinstance(option, type) and _keys(option)), object
    )
