"""A task or an answer as it travels, what became of it, and the parts in which it crosses a stream.

    first part   "AE" version u8, blobs u8 | header u32 | one u64 a blob: their lengths
    the rest     header and blobs, one after the other, in pieces of at most `PART_BYTES`

The receiver knows from the first part how much is to come, and refuses it before it takes memory.
What is in header and blobs, `engine.message` checks.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Protocol

from airtune.errors import CodecError

VERSION = version("airtune")
PART_BYTES = 1 << 20
"""Largest piece in which anything crosses; the streams' own receive limit is this."""
PACED_PART_BYTES = 16 << 10
"""Piece of a paced upload, small enough that a share is kept over any tenth of a second."""
MAX_MESSAGE_BYTES = 4 << 30
MAX_BLOBS = 64
_HEAD = struct.Struct("<2sBBI")
_MAGIC, _VERSION = b"AE", 1


class CutOffError(CodecError):
    """A message ended before all of it had come; it may come again."""


@dataclass(frozen=True, slots=True)
class Message:
    """The header as bytes, and the blobs it lists, in its order."""

    header: bytes
    blobs: tuple[bytes, ...] = ()
    answer_bytes: int = MAX_MESSAGE_BYTES
    """Of a task: the most that a legal answer to it can hold."""
    rate_bps: float | None = None
    """Of an answer: the device's share of its link, which it keeps to; None = as fast as it goes."""
    came_s: float = field(default=0.0, compare=False)
    """Of one that has come: seconds from its first part to its last, where it arrived."""

    @property
    def size_bytes(self) -> int:
        """Bytes of header and blobs."""
        return len(self.header) + sum(map(len, self.blobs))


@dataclass(frozen=True, slots=True)
class Response:
    """What became of a message to a device."""

    message: Message | None
    """None = nothing came back."""
    after_s: float
    """Seconds after it was sent."""
    fault: str = ""
    is_late: bool = False
    """Nothing came by the deadline."""
    is_refused: bool = False
    """What came is no answer."""


@dataclass(frozen=True, slots=True)
class More:
    """Time beyond a deadline, for as long as it is of use."""

    most_s: float
    is_needed: Callable[[], bool]
    """Asked again and again once the deadline is over."""


class Transport(Protocol):
    """Carries messages to devices and answers back."""

    def online(self) -> frozenset[int]:
        """Return the numbers of the devices that can be reached now."""
        ...

    def send(
        self, messages: Mapping[int, Message], *, deadline_s: float, more: More | None = None
    ) -> Mapping[int, Response]:
        """Carry a message to each device and wait for all answers, or until the deadline."""
        ...


def parts_of(message: Message, *, part_bytes: int = PART_BYTES) -> Iterator[bytes]:
    """Yield a message in the parts in which it crosses.

    >>> message = Message(b"head", (b"", b"blob"))
    >>> read_message(parts_of(message, part_bytes=3), max_bytes=8) == message
    True
    """
    lengths = struct.pack(f"<{len(message.blobs)}Q", *map(len, message.blobs))
    yield _HEAD.pack(_MAGIC, _VERSION, len(message.blobs), len(message.header)) + lengths
    for piece in (message.header, *message.blobs):
        for start in range(0, len(piece), part_bytes):
            yield piece[start : start + part_bytes]


def read_message(parts: Iterator[bytes], *, max_bytes: int) -> Message:
    """Put a message together.

    Args:
        parts: as they arrive; nothing in them is trusted.
        max_bytes: the most that may come; more is refused before any of it is kept.

    Raises:
        CodecError: if it is damaged or too large.
        CutOffError: if it ends early.
    """
    first = next(parts, None)
    if first is None:
        raise CutOffError("the message ended before it began; send it again")
    began_s = time.monotonic()
    sizes = _sizes(first)
    if sum(sizes) > max_bytes:
        raise CodecError(
            f"the message declares {sum(sizes)} bytes, at most {max_bytes} can answer; it is refused"
        )
    pieces: list[bytes] = []
    come, whole = 0, sum(sizes)
    while come < whole:
        part = next(parts, b"")
        come += len(part)
        if come > whole:
            raise CodecError(f"the message declares {whole} bytes, {come} came; it is refused")
        if not part:
            raise CutOffError(
                f"the message declares {whole} bytes and ended after {come}; send it again"
            )
        pieces.append(part)
    came_s = time.monotonic() - began_s
    content, start = memoryview(b"".join(pieces)), 0
    found = []
    for size in sizes:
        found.append(bytes(content[start : start + size]))
        start += size
    return Message(found[0], tuple(found[1:]), came_s=came_s)


def _sizes(first: bytes) -> tuple[int, ...]:
    """Return the lengths of header and blobs that a first part declares."""
    if len(first) < _HEAD.size:
        raise CodecError(f"a message begins with {_HEAD.size} bytes, got {len(first)}")
    magic, version, blobs, header = _HEAD.unpack_from(first)
    if magic != _MAGIC or version != _VERSION:
        raise CodecError(
            f"the message is version {version} of {magic!r}, {_VERSION} of {_MAGIC!r} is read; "
            "bring both ends to the same version of airtune"
        )
    if blobs > MAX_BLOBS or len(first) != _HEAD.size + 8 * blobs:
        raise CodecError(f"the message lists {blobs} parts in {len(first)} bytes; it is refused")
    return (header, *struct.unpack_from(f"<{blobs}Q", first, _HEAD.size))
