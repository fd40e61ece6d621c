"""An operator's side: submitting a recipe to a server, following it, looking and stopping."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from airtune import errors
from airtune.deploy.labels import Labels
from airtune.deploy.proof import Proof
from airtune.deploy.reach import check_server
from airtune.deploy.site import ServerSettings
from airtune.errors import (
    AirtuneError,
    ConnectionFailedError,
    DeploymentError,
    KeyRefusedError,
    TrainingError,
)
from airtune.recipe import Recipe
from airtune.wire.channel import CONTROL, Way

_REPLY_S = 60.0
_DENIED = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})


@dataclass(frozen=True, slots=True)
class Link:
    """How an operator reaches a server."""

    address: str
    """HOST:PORT."""
    proof: Proof | None
    """None = a server without TLS and keys."""

    def ask(self, call: str, **words: Any) -> Iterator[bytes]:
        """Make a call and yield what comes back.

        Raises:
            ConnectionFailedError: if the server cannot be reached.
            KeyRefusedError: if it does not let this operator do that.
            DeploymentError: if it is another server, or refuses what is asked.
        """
        way = Way(self.address, None if self.proof is None else self.proof.credentials())
        timeout_s = None if call == "Follow" else _REPLY_S
        with way.open() as channel:
            answers = channel.stream_stream(f"/{CONTROL}/{call}")(
                iter([json.dumps(words).encode()]), timeout=timeout_s
            )
            try:
                yield from answers
            except grpc.RpcError as error:
                raise self._fault(error) from error
            finally:
                answers.cancel()

    def call(self, call: str, **words: Any) -> dict[str, Any]:
        """Make a call that answers once; raises as `ask`."""
        return dict(json.loads(b"".join(self.ask(call, **words)) or b"{}"))

    def _fault(self, error: grpc.RpcError) -> AirtuneError:
        details = error.details() or ""
        if error.code() in _DENIED:
            return KeyRefusedError(f"the server at {self.address} refuses this operator: {details}")
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            return DeploymentError(f"the server at {self.address} refused: {details}")
        check_server(self.address, None if self.proof is None else self.proof.authority)
        if self.proof is None:
            return ConnectionFailedError(f"the server at {self.address} ended the call: {details}")
        return KeyRefusedError(
            f"the server at {self.address} does not take the key {self.proof.key}, or ended the "
            f"call ({details}); airtune operator list there says which keys are valid"
        )


def local_link(settings: ServerSettings) -> Link:
    """Return how commands on the server's own machine reach it."""
    tls = settings.tls
    if settings.insecure:
        return Link(settings.address, None)
    return Link(settings.address, Proof(tls.authority, tls.local_key, tls.local_certificate))


def submit(link: Link, recipe: Recipe, **order: str | int | float | Labels) -> int:
    """Have a server run a recipe; returns the number of the run.

    Args:
        link: to the server.
        recipe: checked.
        order: `resume`, `clock`, `devices`, `join-s`, `silent-s`, `where`; dashes written as
            underscores.

    Raises:
        AirtuneError: as `Link.ask`.
    """
    said = {key.replace("_", "-"): value for key, value in order.items()}
    return int(link.call("Submit", recipe=recipe.model_dump_json(), **said)["run"])


def follow(link: Link, run: int) -> Iterator[Mapping[str, Any]]:
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


def _told(link: Link, run: int) -> Iterator[bytes]:
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
