"""What crosses a cut: tensors of real tokens, encoded and decoded, and what both ends remember.

Padding never crosses: the rows of real tokens are packed before they are coded. Every random draw
of a codec is keyed by round, step, device and direction, so a round can be repeated exactly.

Two ways to send less when a sample is seen again, both of which need a memory on both ends:
predictive coding codes the difference to the last reconstruction (SplitCom, arXiv 2602.10564, gives
the idea; reconstructed), and with a frozen device part nothing is sent again (SplitFrozen, arXiv
2503.18986).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from airtune.codec import decode, encode, kept_positions
from airtune.cost.coded import bound_bytes
from airtune.errors import CheckpointError
from airtune.plan import Bools, CodecSpec, Ints

Values = NDArray[np.float32]

INTEGER_BYTES = 4
"""Of a label, a length or a sample's number beside a tensor."""


@dataclass(frozen=True, slots=True)
class Crossed:
    """A tensor as the other end has it."""

    values: Values
    payload_bytes: int
    kept: Bools | None = None
    """Which entries `topk` kept, which both ends know."""
    bound_bytes: float = 0.0
    """What independent, normally distributed entries would take at least."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What payloads took, and what independent, normally distributed entries would at least."""

    payload_bytes: int
    bound_bytes: float


@dataclass(slots=True)
class CutMemory:
    """The last reconstruction of every sample, as both ends of a cut hold it.

    It grows with the samples seen, by `tokens * width` numbers each, on either end; a device whose
    cut (or, where its part is frozen, whose adapters) changed starts afresh.
    """

    _stamps: dict[int, str] = field(default_factory=dict)
    _rows: dict[int, dict[int, Values]] = field(default_factory=dict)

    def of(self, device: int, stamp: str) -> dict[int, Values]:
        """Return a device's samples, none if they were made under another stamp."""
        if self._stamps.get(device) != stamp:
            self._stamps[device], self._rows[device] = stamp, {}
        return self._rows[device]

    def held_bytes(self, device: int) -> int:
        """Return what a device holds, and the server for it."""
        return sum(rows.nbytes for rows in self._rows.get(device, {}).values())

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return everything as named arrays, four a device, for a checkpoint."""
        found: dict[str, NDArray[np.generic]] = {}
        for device, stamp in self._stamps.items():
            rows = self._rows[device]
            found |= {
                f"{device}.stamp": np.array(stamp),
                f"{device}.samples": np.array(list(rows), np.int64),
                f"{device}.lengths": np.array([len(row) for row in rows.values()], np.int64),
                f"{device}.rows": np.concatenate(list(rows.values())) if rows else np.empty((0, 0)),
            }
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> CutMemory:
        """Return the memory that `arrays` described.

        Raises:
            CheckpointError: if an array is not one of a memory, or one is missing.
        """
        memory = cls()
        for name in arrays:
            device, _, what = name.partition(".")
            if not device.isdecimal() or what not in ("stamp", "samples", "lengths", "rows"):
                raise CheckpointError(f"{name!r} is no part of a memory of cut activations")
        for device in dict.fromkeys(name.partition(".")[0] for name in arrays):
            try:
                stamp, samples, lengths, rows = (
                    arrays[f"{device}.{what}"] for what in ("stamp", "samples", "lengths", "rows")
                )
            except KeyError as error:
                raise CheckpointError(f"a memory of cut activations lacks {error}") from error
            pieces = np.split(np.asarray(rows, np.float32), np.cumsum(lengths)[:-1])
            memory._stamps[int(device)] = str(stamp)
            memory._rows[int(device)] = {
                int(sample): piece for sample, piece in zip(samples, pieces, strict=False)
            }
        return memory


def cross(
    values: Values,
    spec: CodecSpec,
    stream: np.random.Generator,
    *,
    kept: Bools | None = None,
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
    return Crossed(
        decoded,
        len(payload),
        kept_positions(payload, max_elements=values.size)
        if spec.kind == "topk" and known is None
        else known,
        bound_bytes(values.size, spec, known_mask=known is not None),
    )


def cross_samples(
    rows: Sequence[Values],
    samples: Ints,
    spec: CodecSpec,
    stream: np.random.Generator,
    *,
    held: dict[int, Values],
    again: bool,
) -> tuple[list[Values], Sizes]:
    """Send what the other end does not know of each sample; `held` is brought up to date.

    Args:
        rows: Each sample's activation at real tokens, (tokens, width).
        samples: Each sample's number on its device.
        spec: The codec.
        stream: For stochastic rounding.
        held: The last reconstructions.
        again: A sample that is known is sent as its difference; otherwise it is not sent.

    Returns:
        The reconstructions, in order, and what the payloads take.

    Raises:
        CodecError: if a value is not finite.
    """
    known = [
        held.get(int(sample), np.empty(0)).shape == row.shape
        for row, sample in zip(rows, samples, strict=True)
    ]
    total, bound = 0, 0.0
    result = [
        held[int(sample)] if is_known else row
        for row, sample, is_known in zip(rows, samples, known, strict=True)
    ]
    for is_difference in (False, True) if again else (False,):
        places = [place for place, is_known in enumerate(known) if is_known == is_difference]
        if not places:
            continue
        parts = [rows[i] - result[i] if is_difference else rows[i] for i in places]
        crossed = cross(np.concatenate(parts), spec, stream)
        total, bound = total + crossed.payload_bytes, bound + crossed.bound_bytes
        ends = np.cumsum([len(part) for part in parts])[:-1]
        for place, piece in zip(places, np.split(crossed.values, ends), strict=True):
            result[place] = result[place] + piece if is_difference else piece
    held.update({int(sample): row for sample, row in zip(samples, result, strict=True)})
    return result, Sizes(total, bound)


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
