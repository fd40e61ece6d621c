"""How fast the link to the server is, measured over the port that split training uses.

A request is one byte that says what it is, then its body: `U` and padding, which is counted; `?`,
answered by the bytes counted and the seconds between the first and the last; `D` and a u32, answered
by that many bytes. Each direction is timed where it arrives.
"""

from __future__ import annotations

import os
import queue
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc

from airtune.errors import FleetError
from airtune.wire.channel import SERVICE, TOKEN_KEY, Way, value_of

PIECE_BYTES = 32 << 10
MAX_DOWN_BYTES = 256 << 20
"""What one stream may ask for, so that a token is no way to drain a server."""
_COUNTED = struct.Struct("<Qd")
_WANTED = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class MeasuredLink:
    """A device's link to its server."""

    up_bps: float
    down_bps: float
    round_trip_s: float
    """Median of small messages."""


def measure_handler(
    may_measure: Callable[[str], bool] | None,
) -> Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]:
    """Return the server's side; `may_measure` says which tokens are let in."""

    def serve(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        token = value_of(context.invocation_metadata(), TOKEN_KEY)
        if may_measure is None or not may_measure(token):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "this token may not measure the link")
        yield from _answers(requests, context)

    return serve


def _answers(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    counted, first, last, left = 0, 0.0, 0.0, MAX_DOWN_BYTES
    for request in requests:
        what, body = request[:1], request[1:]
        if what == b"U":
            last = time.monotonic()
            if first:
                counted += len(body)  # the first piece starts the clock
            first = first or last
        elif what == b"?":
            yield _COUNTED.pack(counted, last - first)
            counted, first = 0, 0.0
        elif what == b"D" and len(body) == _WANTED.size and (wanted := _WANTED.unpack(body)[0]) <= left:  # fmt: skip
            left -= wanted
            noise = os.urandom(PIECE_BYTES)
            for start in range(0, wanted, PIECE_BYTES):
                yield noise[: min(PIECE_BYTES, wanted - start)]
        else:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "this is no question about the link")


def measure_link(
    way: Way, token: str = "", *, seconds: float = 4.0, timeout_s: float = 60.0
) -> MeasuredLink:
    """Measure both directions for about `seconds` each.

    Args:
        way: To the server.
        token: One that may measure; "" where a key lets this device in.
        seconds: For each direction; a slow link may take a little longer.
        timeout_s: After which it is given up.

    Raises:
        FleetError: if the server cannot be reached, refuses, or the link is too slow to measure.
    """
    asks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with way.open() as channel:
        call = channel.stream_stream(f"/{SERVICE}/Measure")
        try:
            answers = call(
                _asked(asks, seconds),
                timeout=timeout_s,
                metadata=(*way.metadata, (TOKEN_KEY, token)),
            )
            link = _measured(asks, answers, seconds)
            asks.put(None)
        except grpc.RpcError as error:
            raise FleetError(
                f"the link to {way.target} could not be measured: {error.details()}"
            ) from error
    return link


_UPLOAD = b"upload"


def _asked(asks: queue.SimpleQueue[bytes | None], seconds: float) -> Iterator[bytes]:
    """Yield requests; an upload goes on for as long as was said, at the pace of the link."""
    while (ask := asks.get()) is not None:
        if ask != _UPLOAD:
            yield ask
            continue
        piece, until = b"U" + os.urandom(PIECE_BYTES), time.monotonic() + seconds
        yield piece
        yield piece
        while time.monotonic() < until:
            yield piece
        yield b"?"


def _measured(
    asks: queue.SimpleQueue[bytes | None], answers: Iterator[bytes], seconds: float
) -> MeasuredLink:
    trips = []
    for _ in range(7):
        start = time.monotonic()
        asks.put(b"?")
        next(answers)
        trips.append(time.monotonic() - start)
    asks.put(_UPLOAD)
    counted, took = _COUNTED.unpack(next(answers))
    rate, wanted, left = 0.0, 4 * PIECE_BYTES, seconds
    while left > 0 and wanted <= MAX_DOWN_BYTES // 4:
        asks.put(b"D" + _WANTED.pack(wanted))
        came, first, last = 0, 0.0, 0.0
        while came < wanted:
            piece = next(answers)
            came, last = came + len(piece), time.monotonic()
            first = first or last
        spent = max(last - first, 1e-9)
        rate = 8 * (wanted - PIECE_BYTES) / spent
        left -= spent
        # ten times more as long as that fits, so that the last one fills what is left
        wanted = int(min(10 * wanted, rate / 8 * max(left, 0.0) + PIECE_BYTES))
        if wanted <= 2 * PIECE_BYTES:
            break
    return MeasuredLink(8 * counted / max(took, 1e-9), rate, statistics.median(trips))
