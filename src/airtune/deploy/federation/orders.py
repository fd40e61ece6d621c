"""An order as it came, and the lines by which its run is followed from elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from airtune.deploy import PROBES
from airtune.engine.remote.split import Serve
from airtune.errors import AirtuneError
from airtune.recipe import Recipe, load_recipe, sent_recipe


@dataclass(frozen=True, slots=True)
class Order:
    """What somebody asked the server to run."""

    recipe: Recipe
    root: Path
    """Where run folders are made."""
    resume: Path | None = None
    rounds: int | None = None
    """With `resume`: more rounds than the run was started with; None = those."""
    clock: Literal["real", "replay"] = "real"
    devices: int = 0
    """How many to wait for; 0 = one, or as many as the recipe's fleet on the replayed clock."""
    join_s: float = 600.0
    """How long to wait for them."""
    silent_s: float = 1800.0
    """How long a device may be silent in a round without a deadline."""
    serve: Serve | None = None
    """Starts the stream of split rounds."""
    probes: Path | None = None
    """Where the server keeps what devices have measured of themselves; None = it is no server's."""


MARK = "airtune: "


def as_line(event: Mapping[str, Any]) -> str:
    """Return an event as one line.

    >>> as_line({"stage": "running"})
    'airtune: {"stage": "running"}'
    """
    return MARK + json.dumps(as_plain(event))


def as_plain(value: Any) -> Any:
    """Return a value as JSON has it; numbers that are not finite are None."""
    if isinstance(value, Mapping):
        return {str(key): as_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


@contextmanager
def told_errors(tell: Callable[..., None]) -> Iterator[None]:
    """Tell whoever follows of an error that ends what is done here."""
    try:
        yield
    except AirtuneError as error:
        tell(error=error.as_document())
        raise


def order_of(said: Mapping[str, Any], *, serve: Serve) -> Order:
    """Return the order that was given in plain values.

    Args:
        said: `recipe` as JSON or the path `recipe-file`; perhaps `resume`, `rounds`, `clock`,
            `devices`, `join-s`, `silent-s`; `state`, the folder of the server, where it has one.
        serve: returns what serves the devices.

    Raises:
        MismatchError: if the recipe cannot be read here.
        RecipeError: if its file cannot.
    """
    text, name = str(said.get("recipe") or ""), str(said.get("recipe-file") or "")
    recipe = sent_recipe(text) if text else load_recipe(name or None)
    state, resume = said.get("state"), str(said.get("resume") or "")
    return Order(
        recipe=recipe,
        root=Path(recipe.output) if state is None else Path(str(state)) / "runs",
        resume=Path(resume) if resume else None,
        rounds=int(said["rounds"]) if said.get("rounds") else None,
        clock="replay" if said.get("clock") == "replay" else "real",
        devices=int(said.get("devices") or 0),
        join_s=float(said.get("join-s") or 600.0),
        silent_s=float(said.get("silent-s") or 1800.0),
        serve=serve,
        probes=None if state is None else Path(str(state)) / PROBES,
    )
