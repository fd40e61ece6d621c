"""Top-K sparsification, stochastic quantisation and lossless coding, as in SFT.

The K largest |x| are kept; their magnitudes are rounded at random, without bias, to `2^(bits-1)`
levels between the smallest and the largest kept, so the squared error of a kept entry is at most
`step^2 / 4`; sign and level share a byte, the positions are a bit mask or gaps, and each stream is
entropy-coded.

Source: Split Fine-Tuning for Large Language Models in Wireless Networks (arXiv 2501.09237),
which names the three stages; the level grid on magnitudes and the layout are reconstructed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from airtune.codec import positions
from airtune.codec.frame import GIVEN_MASK, Envelope, Frame
from airtune.codec.select import topk_mask
from airtune.errors import CodecError
from airtune.plan import CodecSpec

_SIGN = 128


def to_frame(
    tensor: NDArray[np.float32], spec: CodecSpec, generator: np.random.Generator, *, kind: int,
    mask: NDArray[np.bool_] | None,
) -> Frame:  # fmt: skip
    """Sparsify and quantise; with a `mask` known to both ends its positions are used, not sent."""
    flat = tensor.reshape(-1)
    magnitude = np.abs(flat)
    chosen = (
        topk_mask(magnitude, max(1, round(spec.keep * flat.size)))
        if mask is None
        else mask.reshape(-1)
    )
    kept = magnitude[chosen]
    levels = 2 ** (spec.bits - 1)
    low, high = (float(kept.min()), float(kept.max())) if kept.size else (0.0, 0.0)
    step = np.float32((high - low) / (levels - 1)) if high > low else np.float32(0.0)
    level = _round_at_random(kept, np.float32(low), step, levels, generator)
    signs = np.signbit(flat[chosen]).astype(np.uint8) * _SIGN
    codes = (level | signs).tobytes()
    if mask is None:
        where, flags = positions.to_stream(chosen, int(kept.size))
        streams: tuple[bytes, ...] = (where, codes)
    else:
        streams, flags = (codes,), GIVEN_MASK
    return Frame(kind, tensor.shape, int(kept.size), levels, low, float(step), streams, flags)


def _round_at_random(
    kept: NDArray[np.float32],
    low: np.float32,
    step: np.float32,
    levels: int,
    generator: np.random.Generator,
) -> NDArray[np.uint8]:
    if step == 0.0:
        return np.zeros(kept.shape, np.uint8)
    position = (kept - low) / step + generator.random(kept.size, np.float32)
    return np.asarray(np.minimum(position, levels - 1), np.uint8)


def from_envelope(envelope: Envelope, *, mask: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """Rebuild the tensor.

    Raises:
        CodecError: if mask and count disagree, a level is out of range, or the mask is missing.
    """
    frame = envelope.frame
    given = bool(frame.flags & GIVEN_MASK)
    if given != (mask is not None):
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
    codes = np.frombuffer(envelope.open_stream(0 if given else 1, frame.count), np.uint8)
    level = codes & (_SIGN - 1)
    if level.size and int(level.max()) >= frame.levels:
        raise CodecError(
            f"a level must be below {frame.levels}, got {int(level.max())}; ask for it again"
        )
    tensor = np.zeros(frame.elements, np.float32)
    tensor[chosen] = _values(frame)[codes]
    return tensor.reshape(frame.shape)


def _values(frame: Frame) -> NDArray[np.float32]:
    """What each of the 256 code bytes stands for."""
    table = np.arange(_SIGN) * frame.step + frame.low
    if abs(table[frame.levels - 1]) > 1e38:
        raise CodecError(
            f"low {frame.low:g} and step {frame.step:g} exceed single precision; ask for it again"
        )
    with np.errstate(over="ignore"):
        return np.concatenate([table, -table]).astype(np.float32)
