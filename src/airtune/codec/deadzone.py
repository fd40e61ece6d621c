"""A centred dead-zone quantiser: the channel means first, then every entry to a coarse grid.

Sending the mean of each channel (last axis) removes the large constant part that trained
activations carry. The rest is divided by `step` standard deviations and rounded to the nearest
integer, zero included; deterministic. The integers are mostly 0 and code to about two bits. Where
nearly all are 0, as in tensors with a few outliers, positions and the other integers are coded apart,
because a byte coder spends at least a bit on every byte.

Reconstructed: a classical quantiser; the papers' chain is `topk`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from airtune.codec import positions
from airtune.codec.frame import Envelope, Frame
from airtune.errors import CodecError
from airtune.plan import CodecSpec

APART = 4
"""Flag: integers other than 0 are coded apart from their positions."""
WIDE = 8
"""Flag: two bytes an integer, in two streams; some are beyond 127."""
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
    chosen = levels.reshape(-1) != 0
    count = int(np.count_nonzero(chosen))
    flags, values = 0, levels.reshape(-1)
    where: tuple[bytes, ...] = ()
    if count <= _SPARSE * chosen.size:
        stream, flags = positions.to_stream(chosen, count)
        flags, where, values = flags | APART, (stream,), values[chosen]
    coded, wide = _split(values)
    streams = (*where, means.tobytes(), *coded)
    counted = count if flags & APART else tensor.size
    return Frame(
        kind, tensor.shape, counted, 2 * _BYTE + 1, 0.0, float(step), streams, flags | wide
    )


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
    apart = bool(frame.flags & APART)
    chosen = positions.from_envelope(envelope) if apart else np.ones(frame.elements, np.bool_)
    count = int(np.count_nonzero(chosen))
    if count != frame.count:
        raise CodecError(
            f"{count} entries are marked where {frame.count} are declared; ask for it again"
        )
    place = int(apart)
    means = np.frombuffer(envelope.open_stream(place, 2 * channels), np.float16).astype(np.float32)
    if not np.all(np.isfinite(means)):
        raise CodecError("a channel mean of the payload is not finite; ask for it again")
    if (_LARGEST + 1) * abs(frame.step) > 1e38:
        raise CodecError(f"a step of {frame.step:g} exceeds single precision; ask for it again")
    levels = np.zeros(frame.elements, np.float32)
    levels[chosen] = _integers(envelope, place + 1, count)
    rows = levels.reshape(-1, channels) if frame.elements else np.zeros((0, channels), np.float32)
    return (rows * np.float32(frame.step) + means).reshape(frame.shape)


def _integers(envelope: Envelope, place: int, count: int) -> NDArray[np.float32]:
    low = envelope.open_stream(place, count)
    if not envelope.frame.flags & WIDE:
        return np.frombuffer(low, np.int8).astype(np.float32)
    high = np.frombuffer(envelope.open_stream(place + 1, count), np.uint8).astype(np.int32)
    folded = np.frombuffer(low, np.uint8) | high << 8
    return ((folded >> 1) ^ -(folded & 1)).astype(np.float32)
