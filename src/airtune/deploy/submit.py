"""Submitting a recipe to a server, and following it from wherever one is.

What is sent is a Flower app of a few lines that names airtune's own two apps and carries the recipe;
the program itself is installed at the server and on the devices.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from airtune import errors
from airtune.deploy.events import read_line
from airtune.deploy.flower_cli import Link
from airtune.deploy.server import list_runs
from airtune.errors import AirtuneError, ConnectionFailedError, TrainingError
from airtune.recipe import Recipe

_APP = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "airtune-run"
version = {version}
description = "A run of airtune."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "airtune"

[tool.flwr.app.components]
serverapp = "airtune.deploy.app:server"
clientapp = "airtune.deploy.app:client"

[tool.flwr.app.config]
{config}
"""


def submit(link: Link, recipe: Recipe, **config: str | int | float) -> int:
    """Have a server run a recipe; returns Flower's number of the run.

    Args:
        link: to the server.
        recipe: checked.
        config: `resume`, `clock`, `devices`, `join-s`, `silent-s`; dashes written as underscores.

    Raises:
        ConnectionFailedError: if the server cannot be reached.
        DeploymentError: if it refuses.
    """
    values = {"recipe": recipe.model_dump_json(), "recipe-file": "", "resume": "", "clock": "real",
              "devices": 0, "join-s": 600.0, "silent-s": 1800.0}  # fmt: skip
    values |= {key.replace("_", "-"): value for key, value in config.items()}
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
    with tempfile.TemporaryDirectory(prefix="airtune-app-") as name:
        folder = Path(name)
        text = _APP.format(version=json.dumps(_plain_version()), config=lines)
        (folder / "pyproject.toml").write_text(text, encoding="utf-8")
        (folder / "README.md").write_text("A run of airtune.\n", encoding="utf-8")
        said = link.call(["run", str(folder), link.name])
    return int(said["run-id"])


def follow(link: Link, run: int) -> Iterator[Mapping[str, Any]]:
    """Yield what a run tells, until it ends.

    Raises:
        AirtuneError: the one that the run ended with, of its kind and with its exit code.
        TrainingError: if it was stopped, or ended without a word.
    """
    is_finished = False
    for line in link.follow(run):
        event = read_line(line)
        if event is None:
            continue
        if "error" in event:
            raise _error_of(event["error"])
        is_finished = is_finished or "result" in event
        yield event
        if is_finished:
            return
    status = _status(link, run)
    raise TrainingError(
        f"run {run} ended without a result ({status}); go on from its last checkpoint with airtune "
        "run --resume, and see airtune server logs"
    )


def _status(link: Link, run: int) -> str:
    try:
        rows = list_runs(link)
    except AirtuneError as error:
        raise ConnectionFailedError(
            f"the server was lost while run {run} went on: {error}; go on from its last checkpoint "
            "with airtune run --resume once it is back"
        ) from error
    return next((str(row["status"]) for row in rows if row["run-id"] == str(run)), "not known")


def _error_of(said: Mapping[str, Any]) -> AirtuneError:
    """Return the error that a run told of, as the class it was."""
    kind = getattr(errors, str(said.get("kind")), AirtuneError)
    if not (isinstance(kind, type) and issubclass(kind, AirtuneError)):
        kind = AirtuneError
    return kind(str(said.get("message")))


def _plain_version() -> str:
    """Return the version as Flower wants it: three numbers."""
    return ".".join([*version("airtune").split("+")[0].split("."), "0", "0"][:3])
