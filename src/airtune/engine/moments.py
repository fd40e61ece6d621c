"""Second moments as they cross a network: 15 levels a number, two numbers a byte.

What devices slice by stays the same from its measurement to the end of a run, so each is sent it once:
a task names it by a hash, and brings it along where the device is not known to hold it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import torch

from airtune.cost import GRAM_RANK
from airtune.engine.message import Tensors, pack_tensors, unpack_tensors
from airtune.errors import CodecError
from airtune.model.covariance import Covariances
from airtune.model.importance import Means
from airtune.model.mending import Grams
from airtune.plan import ModelShape

BLOB = "moments"
"""Name of the part of a message that holds them."""
_MIDDLE = 8
"""What stands for level 0 in four bits."""
_MOST = 1e18
"""No larger variance or squared mean is taken: what a layer reads is far below."""


class SharedMoments:
    """Which devices of a run hold the second moments that slices are mended by."""

    def __init__(self) -> None:
        """Begin with nobody holding any."""
        self._grams: Grams | None = None
        self._content, self._hash = b"", ""
        self._holders: set[int] = set()

    def for_task(self, device: int, grams: Grams | None) -> tuple[str, dict[str, bytes]]:
        """Return what a task names, and what goes with it; "" and {} where nothing is needed."""
        if grams is None:
            return "", {}
        if grams is not self._grams:
            self._grams, self._content, self._holders = grams, pack_grams(grams), set()
            self._hash = hashlib.sha256(self._content).hexdigest()
        return self._hash, {} if device in self._holders else {BLOB: self._content}

    def settle(self, device: int, named: str, *, is_ok: bool) -> None:
        """Take in whether a device did a task that named them; who did not is sent them again."""
        if named and named == self._hash and is_ok:
            self._holders.add(device)
        elif named:
            self._holders.discard(device)


class HeldMoments:
    """The second moments that one device holds."""

    def __init__(self) -> None:
        """Hold nothing."""
        self._hash = ""
        self._grams: Grams | None = None

    def of(self, named: str, blobs: Mapping[str, bytes], shape: ModelShape) -> Grams | None:
        """Return what a task names; None where it names nothing.

        Raises:
            CodecError: if they are damaged, or neither came nor are here.
        """
        if not named:
            return None
        if BLOB in blobs:
            self._hash, self._grams = named, read_grams(blobs[BLOB], shape)
        if named != self._hash:
            raise CodecError(
                "this device does not hold the second moments that slices are mended by; they come "
                "with its next task"
            )
        return self._grams


def pack_grams(grams: Grams) -> bytes:
    """Return second moments as they travel; what `as_sent` made comes out as it went in."""
    tensors: dict[str, torch.Tensor] = {}
    for layer in ("attention", "ffn"):
        part: Covariances = getattr(grams, layer)
        tensors |= {
            f"{layer}/levels": _halves(part.levels),
            f"{layer}/step": part.step[..., 0],
            f"{layer}/variance": part.variance,
            f"{layer}/mean": torch.from_numpy(np.ascontiguousarray(getattr(grams.means, layer))),
        }
    return pack_tensors(tensors)


def read_grams(content: bytes, shape: ModelShape) -> Grams:
    """Return second moments from `pack_grams`; nothing in it is trusted.

    Args:
        content: as received.
        shape: of the unpruned model.

    Raises:
        CodecError: if tensors are missing, of other sizes, or hold what cannot have been measured.
    """
    tensors = unpack_tensors(content)
    widths = _widths(shape)
    if {name: (one.dtype, tuple(one.shape)) for name, one in tensors.items()} != _wanted(shape):
        raise CodecError("second moments are not of this model's sizes; they are refused")
    attention, ffn = (_read(layer, tensors, width) for layer, width in widths.items())
    means = Means(*(tensors[f"{layer}/mean"].numpy() for layer in widths))
    return Grams(attention, ffn, means)


def grams_bytes(shape: ModelShape) -> int:
    """Return what `pack_grams` gives at most: its tensors, and a header."""
    sizes = (dtype.itemsize * math.prod(size) for dtype, size in _wanted(shape).values())
    return sum(sizes) + 2048


def _wanted(shape: ModelShape) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for layer, width in _widths(shape).items():
        rank = min(GRAM_RANK, width)
        found |= {
            f"{layer}/levels": (torch.uint8, (shape.blocks, rank, -(-width // 2))),
            f"{layer}/step": (torch.float32, (shape.blocks, rank)),
            f"{layer}/variance": (torch.float32, (shape.blocks, width)),
            f"{layer}/mean": (torch.float64, (shape.blocks, width)),
        }
    return found


def _widths(shape: ModelShape) -> dict[str, int]:
    return {"attention": shape.heads * shape.head_dim, "ffn": shape.ffn}


def _read(layer: str, tensors: Tensors, width: int) -> Covariances:
    step, variance = tensors[f"{layer}/step"], tensors[f"{layer}/variance"]
    mean = tensors[f"{layer}/mean"]
    good = [bool(((part >= 0) & (part <= _MOST)).all()) for part in (step, variance, mean.square())]
    if not all(good):
        raise CodecError(f"second moments of {layer} are not finite or too large; they are refused")
    return Covariances(_whole(tensors[f"{layer}/levels"], width), step[..., None], variance)


def _halves(levels: torch.Tensor) -> torch.Tensor:
    """Return levels of -7 to 7, two a byte along the last axis."""
    shifted = (levels + _MIDDLE).to(torch.uint8)
    if shifted.shape[-1] % 2:
        shifted = torch.nn.functional.pad(shifted, (0, 1), value=_MIDDLE)
    return shifted[..., ::2] | (shifted[..., 1::2] << 4)


def _whole(halves: torch.Tensor, width: int) -> torch.Tensor:
    """Return the levels that `_halves` was given, so many along the last axis."""
    both = torch.stack([halves & 15, halves >> 4], -1).flatten(-2)[..., :width]
    return both.to(torch.int8) - _MIDDLE
