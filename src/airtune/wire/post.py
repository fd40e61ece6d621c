"""Tasks that wait for their devices, and the answers that come: each by its own stream and deadline.

    /airtune.Split/Fetch    a task, for who holds its token
    /airtune.Split/Answer   the answer to it

A device is told of a task by a ticket of a few hundred bytes, whatever carries that; it then fetches
the task and sends its answer over streams of its own. One that crawls, dies or never comes holds
nobody up: at the deadline its streams are ended, and what the others sent counts.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

import grpc

from airtune.errors import CodecError
from airtune.wire.channel import DEVICE_KEY, TOKEN_KEY, value_of
from airtune.wire.message import CutOffError, Message, More, Response, parts_of, read_message

LOOK_S = 0.5
"""How often it is looked whether a device that is waited for is still there."""
GONE_S = 30.0
"""How long a device may be away before it is no longer waited for; its agent calls again sooner."""
MAX_TICKET_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a device is told of a task that waits for it."""

    token: str
    run: str = ""
    """Which run the device's calls are for; the front finds its process by it."""
    lasts_s: float = 3600.0
    """How long the task is waited for."""
    address: str = ""
    """HOST:PORT where the task is; "" = at the server that the device knows."""

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str | bytes) -> Ticket:
        """Read a ticket.

        Raises:
            CodecError: if it is none.
        """
        try:
            if len(text) > MAX_TICKET_BYTES:
                raise ValueError(f"{len(text)} bytes")
            said = json.loads(text)
            return Ticket(
                str(said["token"]), str(said["run"]), float(said["lasts_s"]), str(said["address"])
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CodecError(
                f"what came is no ticket of a task ({error}); it is refused"
            ) from error


@dataclass(slots=True)
class _Waiting:
    """A task that is out. Guarded by the post's lock."""

    message: Message
    device: str | None
    """Who alone may have it; None = whoever holds the token."""
    began_s: float
    response: Response | None = None
    call: grpc.ServicerContext | None = None
    """Of an answer that is coming in."""


class Post:
    """The tasks of a process that are out, by their tokens."""

    def __init__(self) -> None:
        """Begin with none."""
        self._waiting: dict[str, _Waiting] = {}
        self.changed = threading.Condition()

    def put(self, message: Message, device: str | None = None) -> str:
        """Lay out a task; returns the token that lets its device have it."""
        token = secrets.token_urlsafe(32)
        with self.changed:
            self._waiting[token] = _Waiting(message, device, time.monotonic())
        return token

    def withdraw(self, token: str) -> None:
        """Take a task back; a stream that still moves it is ended."""
        with self.changed:
            gone = self._waiting.pop(token, None)
            call = None if gone is None else gone.call
        if call is not None:
            call.cancel()

    def response(self, token: str) -> Response | None:
        """Return what came of a task, None as long as nothing did."""
        with self.changed:
            return self._waiting[token].response

    def is_answering(self, token: str) -> bool:
        """Return whether an answer is coming in."""
        with self.changed:
            call = self._waiting[token].call
        return call is not None and bool(call.is_active())

    def fail(self, token: str, why: str) -> None:
        """Note that a task will not be answered."""
        with self.changed:
            waiting = self._waiting.get(token)
            if waiting is not None and waiting.response is None:
                waiting.response = Response(None, time.monotonic() - waiting.began_s, why)
                self.changed.notify_all()

    def fetch(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Serve a task."""
        waiting = self._admitted(context)
        yield from parts_of(waiting.message)

    def answer(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """Take the answer to a task; the last attempt of a device is the one that counts."""
        waiting = self._admitted(context)
        with self.changed:
            if waiting.response is not None:
                context.abort(grpc.StatusCode.ALREADY_EXISTS, "this task was answered already")
            waiting.call = context
        try:
            reply = read_message(requests, max_bytes=waiting.message.answer_bytes)
        except grpc.RpcError:
            return b""  # the connection broke; the device may send it again
        except CutOffError as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            return b""
        except CodecError as error:
            self._settle(waiting, None, str(error))
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            return b""
        self._settle(waiting, reply)
        return b""

    def _settle(self, waiting: _Waiting, reply: Message | None, fault: str = "") -> None:
        with self.changed:
            after_s = time.monotonic() - waiting.began_s
            waiting.response = Response(reply, after_s, fault, is_refused=reply is None)
            waiting.call = None
            self.changed.notify_all()

    def _admitted(self, context: grpc.ServicerContext) -> _Waiting:
        metadata = context.invocation_metadata()
        with self.changed:
            waiting = self._waiting.get(value_of(metadata, TOKEN_KEY))
        if waiting is None:
            context.abort(
                grpc.StatusCode.UNAUTHENTICATED,
                "no task waits for this token; it is over, or it was never yours",
            )
            raise CodecError("the call was refused")  # abort never returns
        if waiting.device is not None and waiting.device != value_of(metadata, DEVICE_KEY):
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "this task is another device's")
        return waiting


class PostTransport:
    """Carries tasks to devices and answers back."""

    def __init__(
        self,
        post: Post,
        *,
        locate: Callable[[], Mapping[int, int]],
        hand: Callable[[int, Ticket], None],
        name_of: Callable[[int], str] | None = None,
        run: str = "",
        address: str = "",
    ) -> None:
        """Know how to reach devices.

        Args:
            post: where tasks are laid out.
            locate: returns the node of every device that is online, by device; a device whose agent
                has started anew has another.
            hand: gives a node a ticket.
            name_of: returns by which name the front knows a node; None = the token alone is asked
                for.
            run: see `Ticket`.
            address: see `Ticket`.
        """
        self._post, self._locate, self._hand = post, locate, hand
        self._name_of, self._run, self._address = name_of, run, address

    def online(self) -> frozenset[int]:
        """Return the numbers of the devices that can be reached now."""
        return frozenset(self._locate())

    def send(
        self, messages: Mapping[int, Message], *, deadline_s: float, more: More | None = None
    ) -> Mapping[int, Response]:
        """Carry a message to each device and wait for all answers, or until the deadline."""
        began_s, nodes = time.monotonic(), self._locate()
        found = {
            device: Response(None, 0.0, "this device is not connected")
            for device in messages
            if device not in nodes
        }
        lasts_s = deadline_s + (0.0 if more is None else more.most_s)
        tokens: dict[int, str] = {}
        try:
            for device in messages.keys() - found.keys():
                name = None if self._name_of is None else self._name_of(nodes[device])
                tokens[device] = self._post.put(messages[device], name)
                self._hand(nodes[device], Ticket(tokens[device], self._run, lasts_s, self._address))
            return found | self._awaited(tokens, nodes, began_s, deadline_s, more)
        finally:
            for token in tokens.values():
                self._post.withdraw(token)

    def _awaited(
        self,
        tokens: Mapping[int, str],
        nodes: Mapping[int, int],
        began_s: float,
        deadline_s: float,
        more: More | None,
    ) -> dict[int, Response]:
        found: dict[int, Response] = {}
        left_at: dict[int, float] = {}
        waiting = dict(tokens)
        while True:
            with self._post.changed:
                for device, token in list(waiting.items()):
                    response = self._post.response(token)
                    if response is not None:
                        found[device] = response
                        del waiting[device]
                after_s = time.monotonic() - began_s
                if not waiting or not _goes_on(after_s, deadline_s, more):
                    break
                left_s = deadline_s - after_s
                self._post.changed.wait(min(LOOK_S, left_s) if left_s > 0 else LOOK_S)
            self._look_after(waiting, nodes, left_at)
        waited_s = max(time.monotonic() - began_s, deadline_s) if more else deadline_s
        return found | {
            device: Response(None, waited_s, f"not back by the deadline of {waited_s:.4g} s", True)
            for device in waiting
        }

    def _look_after(
        self, waiting: Mapping[int, str], nodes: Mapping[int, int], left_at: dict[int, float]
    ) -> None:
        """Give up devices that have left."""
        there, now = self._locate(), time.monotonic()
        for device, token in waiting.items():
            node = there.get(device)
            if node == nodes[device] or self._post.is_answering(token):
                left_at.pop(device, None)
            elif node is not None or now - left_at.setdefault(device, now) > GONE_S:
                self._post.fail(token, "this device left while it worked")


def _goes_on(after_s: float, deadline_s: float, more: More | None) -> bool:
    """Return whether answers are still waited for."""
    if after_s < deadline_s or more is None:
        return after_s < deadline_s
    return after_s < deadline_s + more.most_s and more.is_needed()
