"""A message of the split data plane: a fixed header, numbers beside the tensor, a codec's payload.

    "AS" version u8, kind u8 | run u64 | round u32, step u32, device u32 | rows u16, steps u16
    | beside u32, payload u32 | loss f32, share f32,
    left_s f32 | crc32 u32 || beside | payload

All numbers are little-endian; the checksum covers everything but itself. A message crosses the
stream in parts of at most `PART_BYTES`, the header in the first, so the receiver has checked who
speaks, of what, and how much is to come before it takes memory for any of it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from airtune.errors import CodecError
from airtune.keys import derive_seed
from airtune.split.message import Kind, StepMessage
from airtune.wire.message import PART_BYTES

MAGIC, VERSION = b"AS", 2

_HEAD = struct.Struct("<2sBBQIIIHHIIfff")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEAD.size + _CRC.size


@dataclass(frozen=True, slots=True)
class Expected:
    """What may arrive on a stream; anything else ends it."""

    kinds: frozenset[Kind]
    run: int
    round: int
    device: int
    step: int | None
    """None = the other end decides."""
    max_body_bytes: int


def run_number(run: str) -> int:
    """Return the number that stands for a run's name on the wire."""
    return derive_seed(0, "stream run", run)


def parts_of(message: StepMessage, *, part_bytes: int = PART_BYTES) -> Iterator[bytes]:
    """Yield the message in the pieces in which it crosses."""
    head = _HEAD.pack(
        MAGIC,
        VERSION,
        message.kind,
        message.run,
        message.round,
        message.step,
        message.device,
        message.rows,
        message.steps,
        len(message.beside),
        len(message.payload),
        message.loss,
        message.share,
        message.left_s,
    )
    checksum = zlib.crc32(message.payload, zlib.crc32(message.beside, zlib.crc32(head)))
    whole = b"".join((head, _CRC.pack(checksum), message.beside, message.payload))
    for start in range(0, len(whole), part_bytes):
        yield whole[start : start + part_bytes]


def read_message(parts: Iterator[bytes], expected: Callable[[], Expected]) -> StepMessage | None:
    """Take one message off a stream; None where the stream has ended.

    Args:
        parts: Pieces as they arrive, at most `PART_BYTES` each.
        expected: Asked when a header has come what is allowed; more is taken only if it is.

    Raises:
        CodecError: if the message is damaged, truncated, too large, or not the one awaited.
    """
    first = next(parts, None)
    if first is None:
        return None
    head, checksum = _open(first)
    body_bytes = head.beside + head.payload
    _check(head, expected(), body_bytes)
    pieces, come = [first[HEADER_BYTES:]], len(first) - HEADER_BYTES
    while come < body_bytes:
        piece = next(parts, None)
        if not piece:
            raise CodecError(
                f"the message declares {body_bytes} bytes and ended after {come}; send it again"
            )
        pieces.append(piece)
        come += len(piece)
    body = b"".join(pieces)
    if come != body_bytes or zlib.crc32(body, zlib.crc32(first[: _HEAD.size])) != checksum:
        raise CodecError(
            f"the message's {come} bytes are not the {body_bytes} that its header and checksum "
            "declare; send it again"
        )
    return StepMessage(
        Kind(head.kind),
        head.run,
        head.round,
        head.step,
        head.device,
        head.rows,
        head.steps,
        body[: head.beside],
        body[head.beside :],
        head.loss,
        head.share,
        head.left_s,
    )


@dataclass(frozen=True, slots=True)
class _Head:
    kind: int
    run: int
    round: int
    step: int
    device: int
    rows: int
    steps: int
    beside: int
    payload: int
    loss: float
    share: float
    left_s: float


def _open(first: bytes) -> tuple[_Head, int]:
    if len(first) < HEADER_BYTES:
        raise CodecError(
            f"a message begins with a header of {HEADER_BYTES} bytes, got {len(first)}; "
            "send it again"
        )
    magic, version, *rest = _HEAD.unpack_from(first)
    if magic != MAGIC or version != VERSION:
        raise CodecError(
            f"the message is version {version} of {magic!r}, {VERSION} of {MAGIC!r} is read; "
            "bring both ends to the same version of airtune"
        )
    return _Head(*rest), int(_CRC.unpack_from(first, _HEAD.size)[0])


def _check(head: _Head, expected: Expected, body_bytes: int) -> None:
    for what, given, wanted in (
        ("run", head.run, expected.run),
        ("round", head.round, expected.round),
        ("device", head.device, expected.device),
        ("step", head.step, expected.step),
    ):
        if wanted is not None and given != wanted:
            raise CodecError(
                f"the message is of {what} {given}, this stream awaits {what} {wanted}; "
                "it is refused"
            )
    if head.kind not in expected.kinds:
        wanted_kinds = ", ".join(sorted(kind.name for kind in expected.kinds)) or "nothing more"
        raise CodecError(f"a message of kind {head.kind} came where {wanted_kinds} is awaited")
    if body_bytes > expected.max_body_bytes:
        raise CodecError(
            f"the message declares {body_bytes} bytes, {expected.max_body_bytes} are the most "
            "that a step of this round can need; it is refused"
        )
