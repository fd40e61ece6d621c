"""The controls: float32 as it is, and half precision.

Half precision is sent as two streams, upper and lower bytes: exponents repeat, last digits do not.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    streams = byte_planes(cast) if dtype is np.float16 else (cast.tobytes(),)
    return Frame(kind, tensor.shape, tensor.size, 0, 0.0, 0.0, streams)


def from_envelope(envelope: Envelope, dtype: type[np.floating]) -> NDArray[np.float32]:
    """Rebuild the tensor.

    Raises:
        CodecError: if the stream's length is not what the shape implies or an entry is not finite.
    """
    tensor = _joined(envelope, dtype).astype(np.float32)
    if not np.all(np.isfinite(tensor)):
        raise CodecError("an entry of the payload is not finite; ask for it again")
    return tensor.reshape(envelope.frame.shape)


def byte_planes(half: NDArray[np.float16]) -> tuple[bytes, bytes]:
    """Return the lower and the upper bytes of half-precision numbers."""
    bytes_of = np.frombuffer(half.tobytes(), np.uint8).reshape(-1, 2)
    return bytes_of[:, 0].tobytes(), bytes_of[:, 1].tobytes()


def joined_planes(planes: Sequence[bytes]) -> NDArray[np.float16]:
    """Return the numbers of `byte_planes`, flat."""
    columns = [np.frombuffer(plane, np.uint8) for plane in planes]
    return np.stack(columns, axis=1).reshape(-1).view(np.float16)


def _joined(envelope: Envelope, dtype: type[np.floating]) -> NDArray[np.floating]:
    count = envelope.frame.elements
    size = np.dtype(dtype).itemsize
    if size != 2:
        return np.frombuffer(envelope.open_stream(0, count * size), dtype)
    return joined_planes([envelope.open_stream(index, count) for index in range(2)])
