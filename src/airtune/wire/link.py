"""How fast the link to the server is, measured over the port that all else goes through.

A request is one byte that says what it is, then its body: `U` and padding, which is counted; `?`,
answered by the bytes counted and the seconds between the first and the last; `D` and a u32, answered
by that many bytes. Each direction is timed where it arrives. One call moves `MAX_BYTES` each way at
most, and lasts `MAX_S`.
"""

from __future__ import annotations

import os
import queue
import statistics
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import grpc

from airtune.errors import FleetError
from airtune.wire.channel import SERVICE, Way

PIECE_BYTES = 32 << 10
MAX_BYTES = 256 << 20
"""What one call may move each way, so that a key is no way to drain a server or a month."""
MAX_S = 60.0
"""How long one call may last."""
_COUNTED = struct.Struct("<Qd")
_WANTED = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class MeasuredLink:
    """A device's link to its server."""

    up_bps: float
    down_bps: float
    round_trip_s: float
    """Median of small messages."""


@dataclass(slots=True)
class LinkMeter:
    """The server's side of a measurement."""

    up_bps: float = 0.0
    """What came in, the longest upload so far; 0 = none came."""

    def answers(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Count what comes, and send what is asked for, within the limits of a call."""
        ending = threading.Timer(MAX_S, context.cancel)
        ending.daemon = True
        ending.start()
        try:
            yield from self._answered(requests, context)
        finally:
            ending.cancel()

    def _answered(
        self, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        counted, first, last = 0, 0.0, 0.0
        came = asked = longest = 0
        for request in requests:
            what, body = request[:1], request[1:]
            came += len(request)
            if came > MAX_BYTES:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, _TOO_MUCH)
            if what == b"U":
                last = time.monotonic()
                if first:
                    counted += len(body)  # the first piece starts the clock
                first = first or last
            elif what == b"?":
                if counted > longest:
                    longest, self.up_bps = counted, 8 * counted / max(last - first, 1e-9)
                yield _COUNTED.pack(counted, last - first)
                counted, first = 0, 0.0
            elif what == b"D" and len(body) == _WANTED.size:
                wanted = _WANTED.unpack(body)[0]
                asked += wanted
                if asked > MAX_BYTES:
                    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, _TOO_MUCH)
                noise = os.urandom(PIECE_BYTES)
                for start in range(0, wanted, PIECE_BYTES):
                    yield noise[: min(PIECE_BYTES, wanted - start)]
            else:
                context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT, "this is no question about the link"
                )


_TOO_MUCH = f"a measurement moves at most {MAX_BYTES >> 20} MiB each way"


def measure_link(way: Way, *, seconds: float = 4.0) -> MeasuredLink:
    """Measure both directions for about `seconds` each.

    Args:
        way: To the server.
        seconds: For each direction; a slow link may take a little longer, a fast one ends with
            the bytes that a call may move.

    Raises:
        FleetError: if the server cannot be reached, refuses, or the link is too slow to measure.
    """
    asks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with way.open() as channel:
        call = channel.stream_stream(f"/{SERVICE}/Measure")
        try:
            answers = call(_asked(asks, seconds), timeout=MAX_S, metadata=way.metadata)
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
        left_bytes = MAX_BYTES // 2
        while time.monotonic() < until and left_bytes > 0:
            left_bytes -= len(piece)
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
    while left > 0 and wanted <= MAX_BYTES // 4:
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
