"""A centred dead-zone quantiser: the channel means first, then every entry to a coarse grid.

Sending the mean of each channel (last axis) removes the large constant part that trained
activations carry. The rest is divided by `step` standard deviations and rounded to the nearest
integer, zero included; deterministic. The integers are mostly 0 and code to about two bits.

The integers of a tensor with rows are coded by their contexts (`airtune.codec.contexts`) where that
takes less than independent integers would. Otherwise, where nearly all are 0, positions and the other
integers are coded apart, because a byte coder spends at least a bit on every byte.

Reconstructed: a classical quantiser; the papers' chain is `topk`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from airtune.codec import contexts, entropy, positions
from airtune.codec.frame import Envelope, Frame
from airtune.codec.rows import has_rows
from airtune.errors import CodecError
from airtune.plan import CodecSpec

APART = 4
"""Flag: integers other than 0 are coded apart from their positions."""
WIDE = 8
"""Flag: two bytes an integer, in two streams; some are beyond 127."""
BY_CONTEXT = 128
"""Flag: the integers are coded by their contexts."""
_SPARSE = 0.25
"""Share of integers other than 0 up to which they are coded apart (measured)."""
_BYTE, _LARGEST = 127, 32767


def to_frame(tensor: NDArray[np.float32], spec: CodecSpec, *, kind: int) -> Frame:
    """Centre by channel and quantise; entries beyond 32767 steps are clipped to it."""
    rows = tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim else tensor.reshape(1, 1)
    with np.errstate(over="ignore"):
        means = rows.mean(axis=0, dtype=np.float32).astype(np.float16)
    centred = rows - means.astype(np.float32)
    # Half precision overflows at 65504: such a channel keeps its mean in the levels instead.
    if not np.all(np.isfinite(means)):
        means = np.zeros_like(means)
        centred = rows
    step = np.float32(spec.step * float(centred.std(dtype=np.float64)))
    if step > 0.0:
        levels = np.clip(np.rint(centred / step), -_LARGEST, _LARGEST).astype(np.int16)
    else:
        levels = np.zeros(rows.shape, np.int16)
    coded = _by_context(levels) if has_rows(tensor.shape) else None
    if coded is not None:
        streams = (means.tobytes(), *coded)
        return Frame(
            kind, tensor.shape, tensor.size, 2 * _BYTE + 1, 0.0, float(step), streams, BY_CONTEXT
        )
    chosen = levels.reshape(-1) != 0
    count = int(np.count_nonzero(chosen))
    flags, values = 0, levels.reshape(-1)
    where: tuple[bytes, ...] = ()
    if count <= _SPARSE * chosen.size:
        stream, flags = positions.to_stream(chosen, count)
        flags, where, values = flags | APART, (stream,), values[chosen]
    bytes_of, wide = _split(values)
    streams = (*where, means.tobytes(), *bytes_of)
    counted = count if flags & APART else tensor.size
    return Frame(
        kind, tensor.shape, counted, 2 * _BYTE + 1, 0.0, float(step), streams, flags | wide
    )


def _by_context(levels: NDArray[np.int16]) -> tuple[bytes, ...] | None:
    """Return the streams of integers by their contexts, None where that gains nothing."""
    found = contexts.to_streams(levels)
    size = len(entropy.compress(found[0])[1]) + len(found[1]) + len(found[2])
    plain, _ = _split(levels.reshape(-1))
    if size < sum(entropy.least_bytes(stream) for stream in plain):
        return found
    return found if size < sum(len(entropy.compress(stream)[1]) for stream in plain) else None


def _split(values: NDArray[np.int16]) -> tuple[tuple[bytes, ...], int]:
    """Return integers as one stream of bytes, or as two where one byte is too small, and the flag."""
    if not values.size or int(np.abs(values).max()) <= _BYTE:
        return (values.astype(np.int8).tobytes(),), 0
    # zigzag: small integers of either sign leave the upper byte at 0
    folded = ((values << 1) ^ (values >> 15)).view(np.uint16)
    return (
        (folded & 255).astype(np.uint8).tobytes(),
        (folded >> 8).astype(np.uint8).tobytes(),
    ), WIDE


def from_envelope(envelope: Envelope) -> NDArray[np.float32]:
    """Rebuild the tensor.

    Raises:
        CodecError: if a stream's length is not what the shape implies or a mean is not finite.
    """
    frame = envelope.frame
    channels = frame.shape[-1] if frame.shape else 1
    if (_LARGEST + 1) * abs(frame.step) > 1e38:
        raise CodecError(f"a step of {frame.step:g} exceeds single precision; ask for it again")
    if frame.flags & BY_CONTEXT:
        rows = _from_contexts(envelope, channels).astype(np.float32)
        return (rows * np.float32(frame.step) + _means(envelope, 0, channels)).reshape(frame.shape)
    apart = bool(frame.flags & APART)
    chosen = positions.from_envelope(envelope) if apart else np.ones(frame.elements, np.bool_)
    count = int(np.count_nonzero(chosen))
    if count != frame.count:
        raise CodecError(
            f"{count} entries are marked where {frame.count} are declared; ask for it again"
        )
    number = int(apart)
    means = _means(envelope, number, channels)
    levels = np.zeros(frame.elements, np.float32)
    levels[chosen] = _integers(envelope, number + 1, count)
    rows = levels.reshape(-1, channels) if frame.elements else np.zeros((0, channels), np.float32)
    return (rows * np.float32(frame.step) + means).reshape(frame.shape)


def _means(envelope: Envelope, number: int, channels: int) -> NDArray[np.float32]:
    means = np.frombuffer(envelope.open_stream(number, 2 * channels), np.float16)
    if not np.all(np.isfinite(means)):
        raise CodecError("a channel mean of the payload is not finite; ask for it again")
    return means.astype(np.float32)


def _from_contexts(envelope: Envelope, channels: int) -> NDArray[np.int16]:
    frame, sizes = envelope.frame, envelope.raw_bytes
    if not has_rows(frame.shape) or len(sizes) != 1 + contexts.STREAMS:
        raise CodecError(
            f"a payload of shape {frame.shape} with {len(sizes)} streams has no contexts; ask for it again"
        )
    rows, most = frame.elements // channels, contexts.most_coded_bytes(frame.elements)
    if sizes[2] > most or sizes[3] > 2 * frame.elements:
        raise CodecError(
            f"streams of {sizes[2]} and {sizes[3]} bytes cannot hold {frame.elements} numbers; ask for it again"
        )
    head = envelope.open_stream(1, contexts.head_bytes(rows, channels))
    coded, over = (envelope.open_stream(index, sizes[index]) for index in (2, 3))
    return contexts.from_streams(head, coded, over, rows, channels)


def _integers(envelope: Envelope, number: int, count: int) -> NDArray[np.float32]:
    low = envelope.open_stream(number, count)
    if not envelope.frame.flags & WIDE:
        return np.frombuffer(low, np.int8).astype(np.float32)
    high = np.frombuffer(envelope.open_stream(number + 1, count), np.uint8).astype(np.int32)
    folded = np.frombuffer(low, np.uint8) | high << 8
    return ((folded >> 1) ^ -(folded & 1)).astype(np.float32)
