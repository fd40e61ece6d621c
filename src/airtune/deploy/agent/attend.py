"""A device's connection to its server, over which tickets of tasks come."""

from __future__ import annotations

import json
import queue
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from airtune.deploy.caller import Proof
from airtune.deploy.keys import hash_of
from airtune.errors import CodecError
from airtune.wire.channel import DEVICE_KEY, SERVER, Way, read_json
from airtune.wire.message import VERSION
from airtune.wire.post import MAX_TICKET_BYTES, Ticket

SESSION = secrets.token_hex(8)
"""Of this process: an agent that calls again has lost nothing, one that was started anew has."""
_REFUSALS = frozenset({
    grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED,
})  # fmt: skip


class TakesTickets(Protocol):
    """Has tasks done."""

    def take(self, ticket: Ticket, failed: Callable[[str], None]) -> None:
        """Have a task done; `failed` is told where that is not possible."""
        ...

    def prepare(self) -> None:
        """Be ready for a task that will come soon."""
        ...


Hear = Callable[[Mapping[str, Any]], None]
"""Told what the server says beside tickets."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a line ended."""

    was_connected: bool
    why: str
    code: grpc.StatusCode = grpc.StatusCode.OK

    @property
    def is_refused(self) -> bool:
        """The server does not want this device."""
        return self.code in _REFUSALS


class Attending:
    """One line."""

    def __init__(
        self, server: str, proof: Proof | None, *, name: str, place: TakesTickets, hear: Hear
    ) -> None:
        """Call nobody yet.

        Args:
            server: HOST:PORT.
            proof: files of key and certificates; None = a server without.
            name: what the device calls itself at a server without keys.
            place: takes the tickets.
            hear: told the rest.
        """
        self._hear, self._authority = (
            hear,
            "" if proof is None else hash_of(proof.authority.read_bytes()),
        )
        credentials = None if proof is None else proof.credentials()
        metadata = () if proof is not None else ((DEVICE_KEY, name),)
        self._way, self._place = Way(server, credentials, metadata), place
        self._said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._call: grpc.Call | None = None

    def attend(self, *, on_welcome: Callable[[], None]) -> Ended:
        """Stay until the line ends, however it does."""
        is_connected = False
        self._said.put(
            json.dumps(
                {"version": VERSION, "session": SESSION, "authority": self._authority}
            ).encode()
        )
        with self._way.open() as channel:
            answers = channel.stream_stream(f"/{SERVER}/Attend")(
                self._hello(), metadata=self._way.metadata
            )
            self._call = answers
            try:
                for answer in answers:
                    if not is_connected:
                        is_connected = True
                        on_welcome()
                    else:
                        self._take(answer)
            except grpc.RpcError as error:
                why = error.details() or str(error.code())
                return Ended(is_connected, why, error.code())
            finally:
                self._said.put(None)
        return Ended(is_connected, "the server has closed it")

    def leave(self) -> None:
        """End the line, from any thread."""
        if self._call is not None:
            self._call.cancel()

    def _hello(self) -> Iterator[bytes]:
        while (said := self._said.get()) is not None:
            yield said

    def _take(self, answer: bytes) -> None:
        """Take a ticket, or what is said of keys; anything else is no business of a device."""
        try:
            said = read_json(answer)
            if "soon" in said:
                self._place.prepare()
                return
            if "ticket" not in said:
                self._hear(said)
                return
            if len(answer) > 2 * MAX_TICKET_BYTES:
                raise CodecError(f"{len(answer)} bytes are no ticket")
            ticket = Ticket.from_json(json.dumps(said["ticket"]))
        except (CodecError, ValueError, KeyError, TypeError):
            return

        def failed(why: str) -> None:
            self._said.put(json.dumps({"token": ticket.token, "why": why[:1000]}).encode())

        self._place.take(ticket, failed)
        self._said.put(json.dumps({"token": ticket.token}).encode())
