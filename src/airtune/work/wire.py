"""A tensor that crosses a cut, encoded and decoded.

Padding never crosses: the rows of real tokens are packed before they are coded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from airtune.codec import decode, encode, kept_positions
from airtune.plan import Bools, CodecSpec

Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Crossed:
    """A tensor as the other end has it."""

    values: Values
    payload_bytes: int
    kept: Bools | None = None
    """Which entries `topk` kept, which both ends know."""


def cross(
    values: Values, spec: CodecSpec, stream: np.random.Generator, *, kept: Bools | None = None
) -> Crossed:
    """Encode, count, decode.

    Args:
        values: Finite, with entries, any shape.
        spec: The codec; `predict` is the caller's business.
        stream: For stochastic rounding.
        kept: For `topk`, the positions both ends know already; they are used and not sent.

    Raises:
        CodecError: if a value is not finite.
    """
    spec = replace(spec, predict=False)
    known = kept if spec.kind == "topk" else None
    payload = encode(values, spec, stream, mask=known)
    decoded = decode(payload, max_elements=values.size, mask=known)
    if spec.kind == "topk" and known is None:
        known = kept_positions(payload, max_elements=values.size)
    return Crossed(decoded, len(payload), known)


def packed(tensor: torch.Tensor, mask: torch.Tensor) -> Values:
    """Return the rows (marked, width) of a tensor (batch, tokens, width) in single precision."""
    return np.asarray(tensor[mask.bool()].float().cpu().numpy(), np.float32)


def unpacked(values: Values, mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Put rows back in their places, zero elsewhere.

    Args:
        values: (marked, width).
        mask: (batch, tokens).
        like: Gives type and torch device.
    """
    full = torch.zeros((*mask.shape, values.shape[-1]), dtype=like.dtype, device=like.device)
    full[mask.bool()] = torch.from_numpy(values).to(full)
    return full
