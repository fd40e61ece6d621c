"""Which entries were kept: a bit mask where many are, the gaps between them where few are.

A byte coder cannot go below one bit a byte, which an almost empty bit mask would need; gaps keep
it busy. A gap byte counts the skipped entries before a kept one; 255 skips 255 and keeps none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from airtune.codec.frame import Envelope
from airtune.errors import CodecError

GAPS = 2
"""Flag of a payload whose positions are gaps."""
SPARSE = 0.07
"""Below this share of kept entries gaps are shorter than a mask (measured)."""

_SKIP = 255


def to_stream(chosen: NDArray[np.bool_], count: int) -> tuple[bytes, int]:
    """Return (stream, flag) of a flat mask with `count` entries set."""
    if count > SPARSE * chosen.size:
        return np.packbits(chosen).tobytes(), 0
    gaps = np.diff(np.flatnonzero(chosen), prepend=-1) - 1
    skips, rest = np.divmod(gaps, _SKIP)
    stream = np.full(count + int(skips.sum()), _SKIP, np.uint8)
    stream[np.cumsum(skips + 1) - 1] = rest
    return stream.tobytes(), GAPS


def from_envelope(envelope: Envelope) -> NDArray[np.bool_]:
    """Return the flat mask of a payload's first stream.

    Raises:
        CodecError: if the positions do not mark as many entries as declared, within the tensor.
    """
    frame = envelope.frame
    if not frame.flags & GAPS:
        packed = envelope.open_stream(0, (frame.elements + 7) // 8)
        chosen = np.unpackbits(np.frombuffer(packed, np.uint8), count=frame.elements)
        return np.asarray(chosen.view(np.bool_))
    length = envelope.raw_bytes[0] if envelope.raw_bytes else 0
    if length > frame.count + frame.elements // _SKIP:
        raise CodecError(
            f"{length} gaps cannot mark {frame.count} of {frame.elements} entries; ask for it again"
        )
    stream = np.frombuffer(envelope.open_stream(0, length), np.uint8)
    kept = stream != _SKIP
    position = (np.cumsum(stream, dtype=np.int64) + np.cumsum(kept) - 1)[kept]
    if position.size and int(position[-1]) >= frame.elements:
        raise CodecError(
            f"a kept position must be below {frame.elements}, got {int(position[-1])}; ask for it again"
        )
    mask = np.zeros(frame.elements, np.bool_)
    mask[position] = True
    return mask
