"""An operator's side: submitting a recipe to a server and following it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from airtune import errors
from airtune.deploy.caller import ServerClient
from airtune.deploy.labels import Labels
from airtune.errors import AirtuneError, ConnectionFailedError, KeyRefusedError, TrainingError
from airtune.recipe import Recipe


def submit(link: ServerClient, recipe: Recipe, **order: str | int | float | Labels) -> int:
    """Have a server run a recipe; returns the number of the run.

    Args:
        link: to the server.
        recipe: checked.
        order: `resume`, `clock`, `devices`, `join-s`, `silent-s`, `where`; dashes written as
            underscores.

    Raises:
        AirtuneError: as `ServerClient.ask`.
    """
    said = {key.replace("_", "-"): value for key, value in order.items()}
    return int(link.call("Submit", recipe=recipe.model_dump_json(), **said)["run"])


def follow(link: ServerClient, run: int) -> Iterator[Mapping[str, Any]]:
    """Yield what a run tells, until it ends.

    Raises:
        AirtuneError: the one that the run ended with, of its kind and with its exit code.
        TrainingError: if it was stopped, or ended without a word.
        ConnectionFailedError: if the server is lost.
    """
    is_finished = False
    for line in _told(link, run):
        event = json.loads(line)
        if "error" in event:
            raise _error_of(event["error"])
        if "ended" in event and not is_finished:
            raise TrainingError(
                f"run {run} ended without a result ({event['ended']}); go on from its last "
                "checkpoint with airtune run --resume, and see airtune server logs"
            )
        if "ended" in event:
            return
        is_finished = is_finished or "result" in event
        yield event


def _told(link: ServerClient, run: int) -> Iterator[bytes]:
    try:
        yield from _lines(link.ask("Follow", run=run))
    except (ConnectionFailedError, KeyRefusedError) as error:
        raise ConnectionFailedError(
            f"the server was lost while run {run} went on: {error}; go on from its last checkpoint "
            "with airtune run --resume once it is back"
        ) from error


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines


def _error_of(said: Mapping[str, Any]) -> AirtuneError:
    """Return the error that a run told of, as the class it was."""
    kind = getattr(errors, str(said.get("kind")), AirtuneError)
    if not (isinstance(kind, type) and issubclass(kind, AirtuneError)):
        kind = AirtuneError
    return kind(str(said.get("message")))
