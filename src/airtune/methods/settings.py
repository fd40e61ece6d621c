"""Settings of methods: from a recipe's plain values to the fields of a dataclass, all faults at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import partial
from types import UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

from airtune.errors import RecipeError
from airtune.methods.plugins import call_maker

Settings = Mapping[str, object]

_NOT_SETTINGS = frozenset({"needs", "aggregate", "work", "wants", "may_cut", "may_sample"})
"""Fields of a decider that say what it is, not what a recipe may choose."""


def faults_of(maker: Callable[..., object], settings: Settings, *, name: str = "it") -> list[str]:
    """Return every fault of these settings, each beginning with its key; [] = none.

    Args:
        maker: the settings' dataclass, or any callable with keyword parameters.
        settings: a recipe's plain values.
        name: the method, for the messages.
    """
    known = _known(maker)
    faults = []
    for key, value in settings.items():
        if key not in known:
            near = get_close_matches(key, known, n=1)
            listed = ", ".join(known) if known else "none"
            hint = f"did you mean {near[0]}?" if near else f"its settings: {listed}"
            faults.append(f"{key}: {name} has no such setting; {hint}")
        elif not _fits(value, known[key]):
            faults.append(f"{key}: must be {_describe(known[key])}, got {value!r}")
    return faults or _range_faults(maker, settings)


def typed(maker: Callable[..., object], settings: Settings) -> dict[str, object]:
    """Return the settings with whole numbers as floats and `2%` as 0.02 where a float is meant."""
    known = _known(maker)
    return {key: _typed(value, known.get(key, object)) for key, value in settings.items()}


def _range_faults(maker: Callable[..., object], settings: Settings) -> list[str]:
    try:
        call_maker(maker, typed(maker, settings))
    except RecipeError as error:
        text = str(error)
        key = text.split(" ", 1)[0]
        return [text.replace(key, f"{key}:", 1) if key in _known(maker) else f"name: {text}"]
    except TypeError as error:
        return [f"name: it cannot be made from these settings: {error}"]
    return []


def _known(maker: Callable[..., object]) -> dict[str, object]:
    """Return the settings of a dataclass or callable with their types."""
    fixed = set(maker.keywords) if isinstance(maker, partial) else set()
    target = maker.func if isinstance(maker, partial) else maker
    if isinstance(target, type) and is_dataclass(target):
        hints: dict[str, object] = dict(get_type_hints(target))
        names = [entry.name for entry in fields(target) if entry.init]
    else:
        parameters = inspect.signature(target, eval_str=True).parameters
        names = list(parameters)
        hints = {
            key: entry.annotation
            for key, entry in parameters.items()
            if entry.annotation is not inspect.Parameter.empty
        }
    skip = _NOT_SETTINGS | fixed | {"self"}
    return {name: hints.get(name, object) for name in names if name not in skip}


def _fits(value: object, hint: object) -> bool:
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if hint is float:
        return _is_number(value) or _percent(value) is not None
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is None or hint is type(None):
        return value is None
    return isinstance(value, hint) if isinstance(hint, type) else True


def _typed(value: object, hint: object) -> object:
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if float in parts:
        percent = _percent(value)
        if percent is not None:
            return percent
        if isinstance(value, int) and not isinstance(value, bool) and int not in parts:
            return float(value)
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _percent(value: object) -> float | None:
    if not (isinstance(value, str) and value.strip().endswith("%")):
        return None
    try:
        return float(value.strip()[:-1]) / 100.0
    except ValueError:
        return None


def _describe(hint: object) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        return " or ".join(str(choice) for choice in get_args(hint))
    if origin in (Union, UnionType):
        return " or ".join(_describe(part) for part in get_args(hint))
    if hint is float:
        return "a number"
    if hint is int:
        return "a whole number"
    return "empty" if hint is type(None) else getattr(hint, "__name__", str(hint))
