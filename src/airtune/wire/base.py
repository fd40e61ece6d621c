"""Handing a base model out over the stream's port: one call a file, from any byte on.

    /airtune.Split/Base     request: number of a file u16, offset u64; answer: its chunks

A caller is known by the token of its offer. It names a file by its number in that offer, so nothing
it sends becomes a path, and whoever counts its bytes is asked before each chunk.
"""

from __future__ import annotations

import math
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc

from airtune.errors import ConnectionFailedError, MismatchError
from airtune.wire.channel import SERVICE, TOKEN_KEY, Way, value_of
from airtune.wire.contents import Content
from airtune.wire.stage import Ask, BusyError, Offer, pack_chunk
from airtune.wire.traffic_budget import does_not_hold

_REQUEST = struct.Struct("<HQ")
_FINAL = frozenset({
    grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNIMPLEMENTED,
})  # fmt: skip
"""Refusals that asking again does not change."""
FILE_S = 24 * 3600.0
"""Most seconds that one call may take; a broken one is asked again from where it ended."""


@dataclass(slots=True)
class _Lot:
    """What one token lets out."""

    contents: tuple[Content, ...]
    take: Callable[[int], bool]
    served_bytes: int = 0
    served_at_s: float = -math.inf
    """When its last bytes went out, by `time.monotonic`."""


class Shelf:
    """What a server hands out, and how much of it each token has had."""

    def __init__(self) -> None:
        """Begin empty."""
        self._lots: dict[str, _Lot] = {}
        self._lock = threading.Lock()

    def lend(
        self,
        contents: tuple[Content, ...],
        *,
        take: Callable[[int], bool] = lambda size_bytes: True,
    ) -> str:
        """Return a token that lets its holder have these files.

        Args:
            contents: the files, by their numbers.
            take: asked before bytes are sent whether they may be, and counts them.
        """
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._lots[token] = _Lot(contents, take)
        return token

    def served_bytes(self, token: str) -> int:
        """Return what the holder of a token was sent."""
        with self._lock:
            return self._lots[token].served_bytes

    def idle_s(self, token: str) -> float:
        """Return how long ago the holder of a token was sent something; inf = never."""
        with self._lock:
            return time.monotonic() - self._lots[token].served_at_s

    def lot(self, token: str) -> _Lot | None:
        """Return what a token lets out, None where it lets out nothing."""
        with self._lock:
            return self._lots.get(token)

    def grant(self, lot: _Lot, size_bytes: int) -> bool:
        """Count bytes that are about to be sent; False where they are too many."""
        if not lot.take(size_bytes):
            return False
        with self._lock:
            lot.served_bytes += size_bytes
            lot.served_at_s = time.monotonic()
        return True


def base_handler(
    shelf: Shelf, *, fetches: int
) -> Callable[[bytes, grpc.ServicerContext], Iterator[bytes]]:
    """Return the server's side.

    Args:
        shelf: what is handed out.
        fetches: how many may fetch at a time; one more is told to come again.
    """
    places = threading.BoundedSemaphore(fetches)

    def serve(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        token = value_of(context.invocation_metadata(), TOKEN_KEY)
        lot = shelf.lot(token)
        if lot is None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "this token lets no base model out")
            return
        asked = (
            _REQUEST.unpack(request) if len(request) == _REQUEST.size else (len(lot.contents), 0)
        )
        if asked[0] >= len(lot.contents):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "there is no such file")
            return
        if not places.acquire(blocking=False):
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{fetches} devices are fetching; come again"
            )
            return
        if not context.add_callback(places.release):
            places.release()  # the caller has gone already
            return
        yield from _chunks(shelf, lot, *asked, context=context)

    return serve


def _chunks(
    shelf: Shelf, lot: _Lot, number: int, offset: int, *, context: grpc.ServicerContext
) -> Iterator[bytes]:
    file = lot.contents[number]
    try:
        for content in file.chunks(min(offset, file.size_bytes)):
            chunk = pack_chunk(offset, content)
            if not shelf.grant(lot, len(chunk)):
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, does_not_hold("the base model"))
            yield chunk
            offset += len(content)
    except OSError as error:
        context.abort(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"the server cannot read {file.name}: {error.strerror or error}",
        )


def fetcher(way: Way, offer: Offer) -> Ask:
    """Return what asks a server for an offer's files; the offer gives the token."""

    def ask(number: int, offset: int) -> Iterator[bytes]:
        with way.open() as channel:
            call = channel.unary_stream(f"/{SERVICE}/Base")
            answers = call(
                _REQUEST.pack(number, offset),
                timeout=FILE_S,
                metadata=(*way.metadata, (TOKEN_KEY, offer.token)),
            )
            try:
                yield from answers
            except grpc.RpcError as error:
                said = f"the server at {way.target}: {error.details()}"
                if error.code() in _FINAL:
                    raise MismatchError(f"the base model is refused by {said}") from error
                if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise BusyError(said) from error
                raise ConnectionFailedError(said) from error
            finally:
                answers.cancel()

    return ask
