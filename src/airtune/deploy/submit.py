"""An operator's side: submitting a recipe to a server and following it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
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
        order: `resume`, `rounds`, `clock`, `devices`, `join-s`, `silent-s`, `where`; dashes written as
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
    is_finished, folder = False, ""
    lines = _lines(link.ask("Follow", run=run))
    while True:
        try:
            event = json.loads(next(lines, b'{"ended": "the server is gone"}'))
        except (ConnectionFailedError, KeyRefusedError) as error:
            raise ConnectionFailedError(
                f"the server was lost while run {run} went on: {error}; once it is back, "
                f"{go_on(link.address, folder)}"
            ) from error
        folder = Path(str(event.get("folder") or folder)).name
        if "error" in event:
            raise _error_of(event["error"])
        if "ended" in event and not is_finished:
            raise TrainingError(
                f"run {run} ended without a result ({event['ended']}); "
                f"{go_on(link.address, folder)}; airtune server logs --run {run} there says more"
            )
        if "ended" in event:
            return
        is_finished = is_finished or "result" in event
        yield event


def go_on(address: str, folder: str) -> str:
    """Return what to type to go on with a run from its last checkpoint.

    >>> go_on("edge:9443", "2026-11-28_gates")
    'go on from its last checkpoint with airtune run --server edge:9443 --resume 2026-11-28_gates'
    """
    if not folder:
        return "it has not begun, submit it again"
    return f"go on from its last checkpoint with airtune run --server {address} --resume {folder}"


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
