"""The frame of a payload: a header, the coded streams, a checksum.

    "AT" version kind flags ndim | shape: ndim x u32 | count u32, levels u16, low f32, step f32
    | streams u8, each: coder u8, raw bytes u32, coded bytes u32 | coded streams | crc32

All numbers are little-endian. The checksum covers every byte before it.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from airtune.codec import entropy
from airtune.errors import CodecError

MAGIC, VERSION = b"AT", 3
MAX_DIMENSIONS, MAX_STREAMS = 8, 7
GIVEN_MASK = 1
"""Flag: the positions are those of a mask both ends already hold."""

_START = struct.Struct("<2sBBBB")
_NUMBERS = struct.Struct("<IHffB")
_STREAM = struct.Struct("<BII")
_CHECKSUM = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Frame:
    """A payload taken apart, or about to be put together."""

    kind: int
    shape: tuple[int, ...]
    count: int
    """Entries that carry a level."""
    levels: int
    low: float
    step: float
    streams: tuple[bytes, ...]
    flags: int = 0

    @property
    def elements(self) -> int:
        """Entries of the tensor."""
        return math.prod(self.shape)


def pack(frame: Frame) -> bytes:
    """Code the streams and return the payload."""
    coded = [entropy.compress(stream) for stream in frame.streams]
    parts = [
        _START.pack(MAGIC, VERSION, frame.kind, frame.flags, len(frame.shape)),
        struct.pack(f"<{len(frame.shape)}I", *frame.shape),
        _NUMBERS.pack(frame.count, frame.levels, frame.low, frame.step, len(coded)),
    ]
    for (coder, body), stream in zip(coded, frame.streams, strict=True):
        parts.append(_STREAM.pack(coder, len(stream), len(body)))
    parts.extend(body for _, body in coded)
    payload = b"".join(parts)
    return payload + _CHECKSUM.pack(zlib.crc32(payload))


@dataclass(frozen=True, slots=True)
class Envelope:
    """A checked header; its streams are still coded, and `open_stream` decodes one."""

    frame: Frame
    coders: tuple[int, ...]
    raw_bytes: tuple[int, ...]

    def open_stream(self, index: int, expected_bytes: int) -> bytes:
        """Decode a stream whose length the codec knows from the header.

        Raises:
            CodecError: if the stream is missing, damaged, or declares another length.
        """
        if index >= len(self.coders):
            raise CodecError(
                f"the payload holds {len(self.coders)} streams, {index + 1} are needed; ask for it again"
            )
        if self.raw_bytes[index] != expected_bytes:
            raise CodecError(
                f"stream {index} declares {self.raw_bytes[index]} bytes where the header implies "
                f"{expected_bytes}; ask for it again"
            )
        return entropy.decompress(self.coders[index], self.frame.streams[index], expected_bytes)


def unpack(payload: bytes, *, max_elements: int) -> Envelope:
    """Check a payload's header and checksum, allocating nothing of the size it declares.

    Raises:
        CodecError: if it is truncated, altered, not ours, or declares more than `max_elements`.
    """
    body = _checked_body(payload)
    try:
        return _parse(body, max_elements)
    except struct.error as error:
        raise CodecError(
            f"the payload ends inside its header ({len(payload)} bytes); ask for it again"
        ) from error


def _checked_body(payload: bytes) -> bytes:
    if len(payload) < _START.size + _NUMBERS.size + _CHECKSUM.size:
        raise CodecError(
            f"the payload is truncated: {len(payload)} bytes are less than a header; ask for it again"
        )
    body, tail = payload[: -_CHECKSUM.size], payload[-_CHECKSUM.size :]
    if zlib.crc32(body) != _CHECKSUM.unpack(tail)[0]:
        raise CodecError("the payload's checksum does not match its bytes; ask for it again")
    return body


def _parse(body: bytes, max_elements: int) -> Envelope:
    magic, version, kind, flags, dimensions = _START.unpack_from(body, 0)
    if magic != MAGIC or version != VERSION:
        raise CodecError(
            f"the payload is version {version} of {magic!r}, {VERSION} of {MAGIC!r} is read; update the older end"
        )
    if dimensions > MAX_DIMENSIONS:
        raise CodecError(
            f"a tensor has at most {MAX_DIMENSIONS} dimensions, the payload declares {dimensions}"
        )
    position = _START.size
    shape = struct.unpack_from(f"<{dimensions}I", body, position)
    position += 4 * dimensions
    if math.prod(shape) > max_elements:
        raise CodecError(
            f"the payload declares {math.prod(shape)} elements, {max_elements} are allowed; raise the cap or refuse the sender"
        )
    count, levels, low, step, streams = _NUMBERS.unpack_from(body, position)
    position += _NUMBERS.size
    if streams > MAX_STREAMS:
        raise CodecError(
            f"a payload has at most {MAX_STREAMS} streams, this one declares {streams}"
        )
    if count > math.prod(shape) or not (math.isfinite(low) and math.isfinite(step)):
        raise CodecError(
            f"the payload declares {count} of {math.prod(shape)} entries, low {low:g} and step {step:g}; these cannot be, ask for it again"
        )
    heads = [_STREAM.unpack_from(body, position + index * _STREAM.size) for index in range(streams)]
    position += streams * _STREAM.size
    bodies = _split(body[position:], [head[2] for head in heads])
    frame = Frame(kind, shape, count, levels, low, step, bodies, flags)
    return Envelope(frame, tuple(head[0] for head in heads), tuple(head[1] for head in heads))


def _split(rest: bytes, lengths: Sequence[int]) -> tuple[bytes, ...]:
    if sum(lengths) != len(rest):
        raise CodecError(
            f"the streams declare {sum(lengths)} bytes and {len(rest)} came; ask for it again"
        )
    pieces, position = [], 0
    for length in lengths:
        pieces.append(rest[position : position + length])
        position += length
    return tuple(pieces)
