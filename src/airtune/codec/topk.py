"""Top-K sparsification, stochastic quantisation and lossless coding, as in SFT.

The K largest |x| are kept; their magnitudes are rounded at random, without bias, to `2^(bits-1)`
levels between the smallest and the largest kept, so the squared error of a kept entry is at most
`step^2 / 4`; sign and level share a byte, the positions are a bit mask or gaps, and each stream is
entropy-coded.

A tensor with rows is brought to one scale first (`airtune.codec.rows`), and each row has its own
largest level, so no row and no channel that stands out sets the levels of the others.

Source: Split Fine-Tuning for Large Language Models in Wireless Networks (arXiv 2501.09237),
which names the three stages; the level grid on magnitudes and the layout are reconstructed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from airtune.codec import positions, rows
from airtune.codec.frame import GIVEN_MASK, Envelope, Frame
from airtune.codec.select import topk_mask
from airtune.errors import CodecError
from airtune.plan import CodecSpec

_SIGN = 128


def to_frame(
    tensor: NDArray[np.float32],
    spec: CodecSpec,
    generator: np.random.Generator,
    *,
    kind: int,
    mask: NDArray[np.bool_] | None,
) -> Frame:
    """Sparsify and quantise; with a `mask` known to both ends its positions are used, not sent."""
    levels = 2 ** (spec.bits - 1)
    scale = rows.scale_of(tensor, centred=mask is None) if rows.has_rows(tensor.shape) else None
    flat = (tensor if scale is None else scale.divided(tensor)).reshape(-1)
    magnitude = np.abs(flat)
    chosen = (
        topk_mask(magnitude, max(1, round(spec.keep * flat.size)))
        if mask is None
        else mask.reshape(-1)
    )
    kept = magnitude[chosen]
    low, high = (float(kept.min()), float(kept.max())) if kept.size else (0.0, 0.0)
    step = np.float32((high - low) / (levels - 1)) if high > low else np.float32(0.0)
    flags = 0
    after: tuple[bytes, ...] = ()
    each: np.float32 | NDArray[np.float32] = step
    if scale is not None:
        step = np.float32(step / rows.TOP)
        tops = rows.tops_of(magnitude, chosen, scale, low=low, span=step * (levels - 1))
        each = step * rows.by_entry(tops, chosen)
        flags, after = scale.flags, scale.streams(tops)
    level = _round_at_random(kept, np.float32(low), each, levels, generator)
    codes = (level | np.signbit(flat[chosen]).astype(np.uint8) * _SIGN).tobytes()
    where: tuple[bytes, ...] = ()
    if mask is None:
        stream, gaps = positions.to_stream(chosen, int(kept.size))
        where, flags = (stream,), flags | gaps
    else:
        flags |= GIVEN_MASK
    streams = (*where, codes, *after)
    return Frame(kind, tensor.shape, int(kept.size), levels, low, float(step), streams, flags)


def _round_at_random(
    kept: NDArray[np.float32],
    low: np.float32,
    step: np.float32 | NDArray[np.float32],
    levels: int,
    generator: np.random.Generator,
) -> NDArray[np.uint8]:
    if not np.any(step):
        return np.zeros(kept.shape, np.uint8)
    # a row whose kept entries are all the smallest has no step
    place = (kept - low) / np.where(step > 0.0, step, np.float32(np.inf))
    return np.asarray(
        np.minimum(place + generator.random(kept.size, np.float32), levels - 1), np.uint8
    )


def from_envelope(envelope: Envelope, *, mask: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """Rebuild the tensor.

    Raises:
        CodecError: if mask and count disagree, a level is out of range, or the mask is missing.
    """
    frame = envelope.frame
    chosen = positions_of(envelope, mask=mask)
    place = 0 if frame.flags & GIVEN_MASK else 1
    codes = np.frombuffer(envelope.open_stream(place, frame.count), np.uint8)
    level = codes & (_SIGN - 1)
    if level.size and int(level.max()) >= frame.levels:
        raise CodecError(
            f"a level must be below {frame.levels}, got {int(level.max())}; ask for it again"
        )
    tensor = np.zeros(frame.elements, np.float32)
    if not frame.flags & rows.BY_ROW:
        tensor[chosen] = _values(frame)[codes]
        return tensor.reshape(frame.shape)
    scale, tops = rows.open_scale(envelope, place + 1)
    _check_largest(frame.low, frame.step * rows.TOP * (frame.levels - 1))
    each = np.float32(frame.step) * rows.by_entry(tops, chosen)
    magnitude = np.float32(frame.low) + level * each
    tensor[chosen] = np.where(codes & _SIGN, -magnitude, magnitude)
    return scale.multiplied(tensor).reshape(frame.shape)


def positions_of(envelope: Envelope, *, mask: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Return which entries a payload keeps, flat.

    Raises:
        CodecError: if mask and count disagree, or the mask is missing.
    """
    frame = envelope.frame
    if bool(frame.flags & GIVEN_MASK) != (mask is not None):
        raise CodecError(
            "the payload and this end disagree on whether the mask is sent; use one setting on both"
        )
    if not 2 <= frame.levels <= _SIGN:
        raise CodecError(
            f"the number of levels must be in [2, {_SIGN}], got {frame.levels}; ask for it again"
        )
    chosen = positions.from_envelope(envelope) if mask is None else mask.reshape(-1)
    if chosen.size != frame.elements or int(np.count_nonzero(chosen)) != frame.count:
        raise CodecError(
            f"the mask does not mark {frame.count} of {frame.elements} entries as declared; ask for it again"
        )
    return chosen


def _values(frame: Frame) -> NDArray[np.float32]:
    """What each of the 256 code bytes stands for."""
    table = np.arange(_SIGN) * frame.step + frame.low
    _check_largest(frame.low, table[frame.levels - 1] - frame.low)
    with np.errstate(over="ignore"):
        return np.concatenate([table, -table]).astype(np.float32)


def _check_largest(low: float, span: float) -> None:
    if not abs(low) + abs(span) < 1e38:
        raise CodecError(
            f"levels from {low:g} over {span:g} exceed single precision; ask for it again"
        )
