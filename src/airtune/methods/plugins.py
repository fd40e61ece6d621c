"""Methods from outside: a file and a name, `./mine.py:Mine`, or an entry point.

What stands there is called with the recipe's settings and returns a `Method`, or a decider, which
is then wrapped; a decider may carry `aggregate`, `work`, `wants` and `may_cut` to ask for other than
the defaults.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import cast, get_args

from airtune.errors import AirtuneError, MethodError
from airtune.plan import AggregateSpec, Decider, Method, Need, Want, WorkSpec
from airtune.plan.blame import line_of

GROUP = "airtune.methods"
_PARTS = ("init", "plan", "divide", "learn")
_DECLARED = {
    "aggregate": AggregateSpec,
    "work": WorkSpec,
    "wants": frozenset,
    "may_cut": bool,
    "may_sample": bool,
}
"""What a decider may say of its method, and of which type."""


def is_path(name: str) -> bool:
    """Return whether a method's name is a file and a name in it.

    >>> is_path("./mine.py:Mine"), is_path("jcpba")
    (True, False)
    """
    return ".py:" in name or name.endswith(".py")


def load_path(name: str) -> Callable[..., object]:
    """Return what `./mine.py:Mine` names.

    Raises:
        MethodError: if the file or the name is not there, or the file cannot be run.
    """
    file_name, colon, attribute = name.rpartition(":")
    if not colon:
        raise MethodError(f"{name} names no class; write {name}:Mine")
    path = Path(file_name).expanduser()
    if not path.is_file():
        raise MethodError(f"there is no file {file_name}; a method is given as ./mine.py:Mine")
    return _maker(_module(path.resolve()), attribute, name)


def load_entry(entry: EntryPoint) -> Callable[..., object]:
    """Return what an entry point names.

    Raises:
        MethodError: if it cannot be imported.
    """
    try:
        found = entry.load()
    except Exception as error:  # a stranger's package can raise anything
        raise MethodError(f"the plug-in {entry.name} ({entry.value}) fails: {error!r}") from error
    if not callable(found):
        raise MethodError(f"the plug-in {entry.name} ({entry.value}) is not callable")
    return cast("Callable[..., object]", found)


def entry_points_of() -> Mapping[str, EntryPoint]:
    """Return the installed plug-ins by name, not loaded."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def call_maker(maker: Callable[..., object], settings: Mapping[str, object]) -> object:
    """Return what a method's class or function makes of settings.

    Raises:
        TypeError: if it does not take these settings.
        MethodError: naming file and line, instead of what else one from outside raises.
    """
    try:
        return maker(**settings)
    except (AirtuneError, TypeError):
        raise
    except Exception as error:  # a stranger's class can raise anything
        if maker.__module__.startswith("airtune."):
            raise
        file = str(getattr(sys.modules.get(maker.__module__), "__file__", None) or maker.__module__)
        where = f"{file}:{line_of(error.__traceback__, file) or '?'}"
        raise MethodError(f"{where}: {type(error).__name__}: {error}") from error


def as_method(name: str, made: object) -> Method:
    """Return a method from what a builder made: a method, or a decider to wrap.

    Raises:
        MethodError: if it is neither; the message says what is missing.
    """
    if isinstance(made, Method):
        return made
    missing = [part for part in _PARTS if not callable(getattr(made, part, None))]
    if not hasattr(made, "needs"):
        missing.append("needs")
    if missing:
        raise MethodError(
            f"{name} made a {type(made).__name__}, which is no method: it lacks "
            f"{', '.join(missing)}"
        )
    _check_words(name, "needs", made.needs, get_args(Need))  # type: ignore[attr-defined]
    _check_words(name, "wants", getattr(made, "wants", frozenset()), get_args(Want))
    declared = {
        key: _declared(name, made, key, kind)
        for key, kind in _DECLARED.items()
        if hasattr(made, key)
    }
    return Method(name, cast("Decider", made), **declared)  # type: ignore[arg-type]


def _check_words(name: str, key: str, value: object, known: tuple[str, ...]) -> None:
    if not isinstance(value, frozenset) or not value <= set(known):
        raise MethodError(
            f"{key} of {name} must be a frozenset of {', '.join(known)}, or an empty one, got "
            f"{value!r}"
        )


def _declared(name: str, made: object, key: str, kind: type) -> object:
    value: object = getattr(made, key)
    if not isinstance(value, kind):
        raise MethodError(f"{key} of {name} must be of type {kind.__name__}, got {value!r}")
    return value


@lru_cache(maxsize=32)
def _module(path: Path) -> ModuleType:
    name = f"airtune_plugin_{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise MethodError(f"{path} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a stranger's file can raise anything
        del sys.modules[name]
        line = error.lineno if isinstance(error, SyntaxError) else None
        line = line or line_of(error.__traceback__, str(path)) or 1
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        raise MethodError(f"{path}:{line}: {type(error).__name__}: {said}") from error
    return module


def _maker(module: ModuleType, attribute: str, name: str) -> Callable[..., object]:
    found = getattr(module, attribute, None)
    if not callable(found):
        offered = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module.__name__
        ]
        raise MethodError(
            f"{name}: the file has no class {attribute}; it has {', '.join(offered) or 'none'}"
        )
    return cast("Callable[..., object]", found)
