"""The controls: float32 as it is, and half precision."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike, NDArray

from airtune.codec.frame import Envelope, Frame
from airtune.errors import CodecError


def to_frame(tensor: NDArray[np.float32], dtype: DTypeLike, *, kind: int) -> Frame:
    """Store every entry as `dtype`.

    Raises:
        CodecError: if an entry is too large for it.
    """
    with np.errstate(over="ignore"):
        cast = tensor.astype(dtype)
    if not np.all(np.isfinite(cast)):
        raise CodecError(
            f"an entry of {float(np.abs(tensor).max()):g} does not fit {np.dtype(dtype).name}; use identity or topk"
        )
    return Frame(kind, tensor.shape, tensor.size, 0, 0.0, 0.0, (cast.tobytes(),))


def from_envelope(envelope: Envelope, dtype: DTypeLike) -> NDArray[np.float32]:
    """Rebuild the tensor.

    Raises:
        CodecError: if the stream's length is not what the shape implies or an entry is not finite.
    """
    stream = envelope.open_stream(0, envelope.frame.elements * np.dtype(dtype).itemsize)
    tensor = np.frombuffer(stream, dtype).astype(np.float32)
    if not np.all(np.isfinite(tensor)):
        raise CodecError("an entry of the payload is not finite; ask for it again")
    return tensor.reshape(envelope.frame.shape)
