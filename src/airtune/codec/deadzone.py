"""A centred dead-zone quantiser: the channel means first, then every entry to a coarse grid.

Sending the mean of each channel (last axis) removes the large constant part that trained
activations carry. The rest is divided by `step` standard deviations and rounded to the nearest
integer, zero included; deterministic. The integers are mostly 0 and code to about two bits.

Reconstructed: a classical quantiser; the papers' chain is `topk`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from airtune.codec.frame import Envelope, Frame
from airtune.errors import CodecError
from airtune.plan import CodecSpec

_LARGEST = 127


def to_frame(tensor: NDArray[np.float32], spec: CodecSpec, *, kind: int) -> Frame:
    """Centre by channel and quantise; entries beyond 127 steps are clipped to it."""
    rows = tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim else tensor.reshape(1, 1)
    means = rows.mean(axis=0, dtype=np.float32).astype(np.float16)
    centred = rows - means.astype(np.float32)
    # Half precision overflows at 65504: such a channel keeps its mean in the levels instead.
    if not np.all(np.isfinite(means)):
        means = np.zeros_like(means)
        centred = rows
    step = np.float32(spec.step * float(centred.std(dtype=np.float64)))
    if step > 0.0:
        levels = np.clip(np.rint(centred / step), -_LARGEST, _LARGEST).astype(np.int8)
    else:
        levels = np.zeros(rows.shape, np.int8)
    streams = (means.tobytes(), levels.tobytes())
    return Frame(kind, tensor.shape, tensor.size, 2 * _LARGEST + 1, 0.0, float(step), streams)


def from_envelope(envelope: Envelope) -> NDArray[np.float32]:
    """Rebuild the tensor.

    Raises:
        CodecError: if a stream's length is not what the shape implies or a mean is not finite.
    """
    frame = envelope.frame
    channels = frame.shape[-1] if frame.shape else 1
    means = np.frombuffer(envelope.open_stream(0, 2 * channels), np.float16).astype(np.float32)
    if not np.all(np.isfinite(means)):
        raise CodecError("a channel mean of the payload is not finite; ask for it again")
    if (_LARGEST + 1) * abs(frame.step) > 1e38:
        raise CodecError(f"a step of {frame.step:g} exceeds single precision; ask for it again")
    levels = np.frombuffer(envelope.open_stream(1, frame.elements), np.int8)
    rows = (
        levels.reshape(-1, channels).astype(np.float32)
        if frame.elements
        else np.zeros((0, channels), np.float32)
    )
    return (rows * np.float32(frame.step) + means).reshape(frame.shape)
