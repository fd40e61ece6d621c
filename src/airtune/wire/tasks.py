"""A device's side of the post: fetch the task that a ticket names, send its answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import grpc

from airtune.errors import ConnectionFailedError
from airtune.wire.channel import SERVICE, TOKEN_KEY, Metadata, Way
from airtune.wire.message import (
    MAX_MESSAGE_BYTES,
    PACED_PART_BYTES,
    PART_BYTES,
    Message,
    parts_of,
    read_message,
)
from airtune.wire.post import Ticket

AGAIN = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNKNOWN}
)
"""Ends of a call after which it is tried again."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 5.0
Pace = Callable[[int], float | None]
"""Waits until so many bytes may be sent."""
Made = TypeVar("Made")


def fetch_task(way: Way, ticket: Ticket) -> Message:
    """Return the task that a ticket names.

    Raises:
        ConnectionFailedError: if the server refuses, or cannot be reached for as long as the task
            lasts.
        CodecError: if what comes is damaged.
    """

    def once(channel: grpc.Channel, metadata: Metadata, left_s: float) -> Message:
        call = channel.unary_stream(f"/{SERVICE}/Fetch")
        return read_message(
            iter(call(b"", timeout=left_s, metadata=metadata)), max_bytes=MAX_MESSAGE_BYTES
        )

    return _tried(way, ticket, once)


def send_answer(way: Way, ticket: Ticket, reply: Message, *, pace: Pace | None = None) -> None:
    """Send the answer to a task.

    Args:
        way: to who gave it.
        ticket: of the task.
        reply: the answer.
        pace: asked before every piece but the first, which is small; None = as fast as it goes.

    Raises:
        ConnectionFailedError: if the server refuses, or cannot be reached for as long as the task
            lasts.
    """

    def once(channel: grpc.Channel, metadata: Metadata, left_s: float) -> None:
        channel.stream_unary(f"/{SERVICE}/Answer")(
            _pieces(reply, pace), timeout=left_s, metadata=metadata
        )

    _tried(way, ticket, once)


def _pieces(reply: Message, pace: Pace | None) -> Iterator[bytes]:
    parts = parts_of(reply, part_bytes=PACED_PART_BYTES if pace else PART_BYTES)
    yield next(parts)
    for piece in parts:
        if pace is not None:
            pace(len(piece))
        yield piece


def _tried(way: Way, ticket: Ticket, once: Callable[[grpc.Channel, Metadata, float], Made]) -> Made:
    """Make a call, again where the connection breaks, for as long as the task lasts."""
    until, pause_s = time.monotonic() + ticket.lasts_s, FIRST_PAUSE_S
    metadata = (*way.metadata, (TOKEN_KEY, ticket.token))
    while True:
        left_s = max(until - time.monotonic(), 0.01)
        try:
            with way.open() as channel:
                return once(channel, metadata, left_s)
        except grpc.RpcError as error:
            if error.code() not in AGAIN or left_s <= pause_s:
                raise ConnectionFailedError(
                    f"the server at {way.target} ended the task: {error.details()}"
                ) from error
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
