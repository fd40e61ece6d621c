"""The controls: float32 as it is, and half precision.

Half precision is sent as two streams, upper and lower bytes: exponents repeat, last digits do not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from airtune.codec.frame import Envelope, Frame
from airtune.errors import CodecError


def to_frame(tensor: NDArray[np.float32], dtype: type[np.floating], *, kind: int) -> Frame:
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
    return Frame(kind, tensor.shape, tensor.size, 0, 0.0, 0.0, _planes(cast))


def from_envelope(envelope: Envelope, dtype: type[np.floating]) -> NDArray[np.float32]:
    """Rebuild the tensor.

    Raises:
        CodecError: if the stream's length is not what the shape implies or an entry is not finite.
    """
    tensor = _joined(envelope, dtype).astype(np.float32)
    if not np.all(np.isfinite(tensor)):
        raise CodecError("an entry of the payload is not finite; ask for it again")
    return tensor.reshape(envelope.frame.shape)


def _planes(cast: NDArray[np.floating]) -> tuple[bytes, ...]:
    if cast.itemsize != 2:
        return (cast.tobytes(),)
    bytes_of = np.frombuffer(cast.tobytes(), np.uint8).reshape(-1, 2)
    return tuple(bytes_of[:, place].tobytes() for place in range(2))


def _joined(envelope: Envelope, dtype: type[np.floating]) -> NDArray[np.floating]:
    count = envelope.frame.elements
    size = np.dtype(dtype).itemsize
    if size != 2:
        return np.frombuffer(envelope.open_stream(0, count * size), dtype)
    planes = [np.frombuffer(envelope.open_stream(place, count), np.uint8) for place in range(2)]
    return np.stack(planes, axis=1).reshape(-1).view(dtype)
