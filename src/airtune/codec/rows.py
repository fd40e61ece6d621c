"""Rows brought to one scale before a codec chooses levels for a whole tensor.

With the channels' means subtracted, a row is divided by its root mean square, rounded to an eighth of
an octave. Means take 2 bytes a channel, and are left out where few rows would share them, or where
positions are given, because entries at other positions then stand for zero. A row takes 3 bytes: two
for its scale, one for its largest entry.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airtune.codec.frame import Envelope
from airtune.cost.coded import FEWEST_CENTRED, FEWEST_CHANNELS
from airtune.errors import CodecError

BY_ROW, CENTRED = 32, 64
"""Flags: rows have scales; channels have means."""
TOP = 255
"""A row's largest entry, where it is the tensor's."""
_EIGHTHS = 8.0
_LARGEST = 1000
"""Of an exponent in eighths of an octave, either sign."""


@dataclass(frozen=True, slots=True)
class RowScale:
    """What a tensor's rows were divided by."""

    means: NDArray[np.float16] | None
    """(channels,)."""
    exponent: NDArray[np.int16]
    """(rows,), in eighths of an octave."""

    @property
    def flags(self) -> int:
        """Return what a payload says of it."""
        return BY_ROW | (0 if self.means is None else CENTRED)

    def divided(self, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the rows (rows, channels) of a tensor at one scale."""
        rows = tensor.reshape(-1, tensor.shape[-1])
        centred = rows if self.means is None else rows - self.means.astype(np.float32)
        return centred * self._factor(-1.0)

    def multiplied(self, flat: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the rows (rows, channels) that `divided` would have made `flat` of.

        Raises:
            CodecError: if a number exceeds single precision.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            rows = flat.reshape(len(self.exponent), -1) * self._factor(1.0)
            whole = rows if self.means is None else rows + self.means.astype(np.float32)
        if not np.all(np.isfinite(whole)):
            raise CodecError("an entry of the payload is not finite; ask for it again")
        return whole

    def streams(self, tops: NDArray[np.uint8]) -> tuple[bytes, ...]:
        """Return what is sent of it, with each row's largest entry in 255ths of the tensor's."""
        means = () if self.means is None else (self.means.tobytes(),)
        return (*means, self.exponent.astype("<i2").tobytes() + tops.tobytes())

    def _factor(self, sign: float) -> NDArray[np.float32]:
        factor = np.exp2(sign * self.exponent / _EIGHTHS)
        return np.asarray(factor[:, None], np.float32)


def has_rows(shape: tuple[int, ...]) -> bool:
    """Return whether a tensor has rows, along its last axis, that are long enough to be scaled."""
    return len(shape) > 1 and shape[-1] >= FEWEST_CHANNELS


def scale_of(tensor: NDArray[np.float32], *, centred: bool) -> RowScale:
    """Return the scale of a tensor's rows, with channel means where asked for and worth it."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    means = None
    if centred and len(rows) >= FEWEST_CENTRED:
        with np.errstate(over="ignore"):
            means = rows.mean(axis=0, dtype=np.float64).astype(np.float16)
        if np.all(np.isfinite(means)):
            rows = rows - means.astype(np.float32)
        else:  # beyond half precision
            means = None
    norm = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64) / rows.shape[-1])
    exponent = np.rint(_EIGHTHS * np.log2(np.where(norm > 0.0, norm, 1.0)))
    return RowScale(means, np.clip(exponent, -_LARGEST, _LARGEST).astype(np.int16))


def tops_of(
    magnitude: NDArray[np.float32],
    chosen: NDArray[np.bool_],
    scale: RowScale,
    *,
    low: float,
    span: np.float32,
) -> NDArray[np.uint8]:
    """Return each row's largest chosen entry above `low`, in units of `span`, rounded up."""
    rows = len(scale.exponent)
    largest = np.where(chosen, magnitude, 0.0).reshape(rows, -1).max(axis=1)
    if span == 0.0:
        return np.zeros(rows, np.uint8)
    return np.asarray(np.clip(np.ceil((largest - low) / span), 0, TOP), np.uint8)


def by_entry(tops: NDArray[np.uint8], chosen: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return, for each chosen entry, its row's value."""
    counts = np.count_nonzero(chosen.reshape(len(tops), -1), axis=1)
    return np.repeat(tops.astype(np.float32), counts)


def open_scale(envelope: Envelope, number: int) -> tuple[RowScale, NDArray[np.uint8]]:
    """Take scale and largest entries from a payload's streams, from `number` on.

    Raises:
        CodecError: if the shape has no rows, a stream is of another length, or a value is out of range.
    """
    shape = envelope.frame.shape
    if not has_rows(shape):
        raise CodecError(f"a payload of shape {shape} has no rows to scale; ask for it again")
    rows = envelope.frame.elements // shape[-1]
    means = None
    if envelope.frame.flags & CENTRED:
        means = np.frombuffer(envelope.open_stream(number, 2 * shape[-1]), np.float16)
        number += 1
        if not np.all(np.isfinite(means)):
            raise CodecError("a channel mean of the payload is not finite; ask for it again")
    packed = envelope.open_stream(number, 3 * rows)
    exponent = np.frombuffer(packed[: 2 * rows], "<i2").astype(np.int16)
    if exponent.size and int(np.abs(exponent.astype(np.int32)).max()) > _LARGEST:
        raise CodecError(
            f"a row's scale must be within 2^{_LARGEST / _EIGHTHS:g} either way; ask for it again"
        )
    return RowScale(means, exponent), np.frombuffer(packed[2 * rows :], np.uint8)
