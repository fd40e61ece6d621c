"""Rows that stand out, sent apart in half precision, so that they do not set the levels of all others.

In many language models the first token's row is 3 to 100 times as long as the others. A codec with
one step, or one smallest and largest level, for a whole tensor would round every other row to nothing.
A row stands out where its norm is over four times the median; where more than an eighth of the rows
do, the tensor is simply wide, and nothing is sent apart.

The frame keeps the codec's own streams and has three more at its end: a bit a row with an exponent,
and the lower and the upper bytes of the rows' half-precision numbers, divided by 2 to that exponent,
so that neither large nor small tensors leave its range. Equal rows among them cost little more than
one, as zstd finds them.

Sources: that such rows exist, Massive Activations in Large Language Models (arXiv 2402.17762);
outliers in half precision beside coarse levels, LLM.int8() (arXiv 2208.07339). By row, with this
threshold, is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from airtune.codec.frame import Envelope, Frame
from airtune.codec.plain import byte_planes, joined_planes
from airtune.codec.rows import has_rows
from airtune.cost.coded import MOST_APART
from airtune.errors import CodecError

ROWS_APART = 16
"""Flag: the last three streams hold rows that stand out."""

_RATIO = 4.0
_STREAMS = 3
_HALF_EXPONENT = 15
"""Numbers below 2 to this fit half precision, whose largest is 65504."""


def outlying_rows(tensor: NDArray[np.float32]) -> NDArray[np.bool_] | None:
    """Return which rows (along the last axis) stand out, None where none or too many do."""
    if not has_rows(tensor.shape):
        return None
    rows = tensor.reshape(-1, tensor.shape[-1])
    norm = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    median = float(np.median(norm))
    chosen = norm > _RATIO * median
    is_few = 0 < int(np.count_nonzero(chosen)) <= MOST_APART * len(rows)
    return chosen if is_few and median > 0.0 else None


def with_rows(rest: Frame, tensor: NDArray[np.float32], chosen: NDArray[np.bool_]) -> Frame:
    """Return the frame of a whole tensor: that of its other rows, and the chosen ones beside it."""
    rows = tensor.reshape(-1, tensor.shape[-1])[chosen]
    exponent = max(math.frexp(float(np.abs(rows).max()))[1] - _HALF_EXPONENT, -128)
    where = np.packbits(chosen).tobytes() + exponent.to_bytes(1, "little", signed=True)
    # rounded down at the top of the range, which half precision would call infinity
    half = np.clip(np.ldexp(rows, -exponent), -65504, 65504).astype(np.float16)
    streams = (*rest.streams, where, *byte_planes(half))
    return replace(rest, shape=tensor.shape, streams=streams, flags=rest.flags | ROWS_APART)


@dataclass(frozen=True, slots=True)
class ApartRows:
    """The rows of a payload that were sent apart, and the payload of all others."""

    chosen: NDArray[np.bool_]
    """Of all rows, which."""
    values: NDArray[np.float32]
    """(chosen, channels)."""
    rest: Envelope

    def with_others(self, others: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return all rows, (rows, channels)."""
        whole = np.empty((self.chosen.size, self.values.shape[-1]), np.float32)
        whole[self.chosen], whole[~self.chosen] = self.values, others
        return whole


def open_rows(envelope: Envelope) -> ApartRows:
    """Take the rows that were sent apart from a payload that says it has some.

    Raises:
        CodecError: if the shape has no rows, the streams are not what it implies, more rows are
            marked than can be, or a number is not finite.
    """
    frame, first = envelope.frame, len(envelope.coders) - _STREAMS
    if not has_rows(frame.shape) or first < 0:
        raise CodecError(
            f"a payload of shape {frame.shape} with {len(envelope.coders)} streams holds no rows "
            "apart; ask for it again"
        )
    channels = frame.shape[-1]
    rows = frame.elements // channels
    packed = envelope.open_stream(first, (rows + 7) // 8 + 1)
    bits = np.unpackbits(np.frombuffer(packed[:-1], np.uint8), count=rows)
    chosen = np.asarray(bits.view(np.bool_))
    count = int(np.count_nonzero(chosen))
    if not 0 < count <= MOST_APART * rows:
        raise CodecError(
            f"at least 1 and at most {int(MOST_APART * rows)} of {rows} rows can stand out, "
            f"{count} are marked; ask for it again"
        )
    exponent = int.from_bytes(packed[-1:], "little", signed=True)
    planes = [envelope.open_stream(first + index, count * channels) for index in (1, 2)]
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.ldexp(joined_planes(planes).astype(np.float32), exponent)
    if not np.all(np.isfinite(values)):
        raise CodecError("an entry of a row sent apart is not finite; ask for it again")
    others = replace(
        frame,
        shape=(rows - count, channels),
        streams=frame.streams[:first],
        flags=frame.flags & ~ROWS_APART,
    )
    rest = Envelope(others, envelope.coders[:first], envelope.raw_bytes[:first])
    return ApartRows(chosen, values.reshape(count, channels), rest)
