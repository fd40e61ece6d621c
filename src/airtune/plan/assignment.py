"""What a device is told for one round: the five knobs, in columns over devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import numpy as np

from airtune.errors import MethodError
from airtune.plan.shape import Floats, Ints

CodecKind = Literal["identity", "fp16", "topk", "deadzone"]


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """How tensors are compressed on the wire."""

    kind: CodecKind = "identity"
    keep: float = 1.0
    """Fraction of entries kept (`topk`)."""
    bits: int = 32
    """Bits of a kept level, sign included (`topk`)."""
    step: float = 0.75
    """Quantiser step in standard deviations (`deadzone`)."""
    predict: bool = False
    """Code the difference to the last reconstruction of the same sample."""

    @property
    def label(self) -> str:
        """The codec in words, as records name it.

        >>> CodecSpec("topk", keep=0.1, bits=4).label
        'topk 0.1 at 4 bits'
        """
        said = {
            "topk": f"topk {self.keep:g} at {self.bits} bits",
            "deadzone": f"deadzone {self.step:g}",
        }.get(self.kind, self.kind)
        return f"{said}, predictive" if self.predict else said


@dataclass(frozen=True, slots=True)
class Assignment:
    """One device's row of `Assignments`."""

    device: int
    prune_heads: float
    prune_ffn: float
    rank: int
    cut: int | None
    share: float
    local_steps: int
    codec: CodecSpec


@dataclass(frozen=True, slots=True)
class Assignments:
    """The five knobs for the devices that take part in a round; every column has shape (n,).

    Raises:
        MethodError: if a column's length differs or a value is out of range.
    """

    device: Ints
    """Index into the fleet, strictly increasing."""
    prune_heads: Floats
    """Fraction of key-value groups removed from every block, in [0, 1)."""
    prune_ffn: Floats
    """Fraction of FFN channels removed from every block, in [0, 1)."""
    rank: Ints
    """LoRA rank, at least 1."""
    share: Floats
    """Fraction of the device's link, in (0, 1]: of its hertz on a radio link that is divided,
    of its air time on a link with a measured capacity; 1 on a dedicated link."""
    local_steps: Ints
    cut: Ints
    """Blocks held by the device; 0 means nothing is split."""
    codec_index: Ints
    """Index into `codecs`."""
    codecs: tuple[CodecSpec, ...] = field(default=(CodecSpec(),))

    def __post_init__(self) -> None:
        columns = (self.prune_heads, self.prune_ffn, self.rank, self.share, self.local_steps,
                   self.cut, self.codec_index)  # fmt: skip
        for column in columns:
            if column.shape != self.device.shape:
                raise MethodError(
                    f"every column of a plan needs one value a device, got {column.shape[0]} "
                    f"for {self.device.shape[0]} devices"
                )
        _check("prune_heads", self.prune_heads, 0.0, 1.0, below=True)
        _check("prune_ffn", self.prune_ffn, 0.0, 1.0, below=True)
        _check("rank", self.rank, 1, np.inf)
        _check("share", self.share, 0.0, 1.0 + 1e-9)
        _check("local_steps", self.local_steps, 1, np.inf)
        _check("cut", self.cut, 0, np.inf)
        _check("codec_index", self.codec_index, 0, len(self.codecs) - 1)
        if np.any(np.diff(self.device) <= 0):
            raise MethodError("devices of a plan must be strictly increasing; sort them, each once")

    def __len__(self) -> int:
        return int(self.device.shape[0])

    def __iter__(self) -> Iterator[Assignment]:
        return (self.row(index) for index in range(len(self)))

    def row(self, index: int) -> Assignment:
        """Return what the device at this position is told."""
        cut = int(self.cut[index])
        return Assignment(
            device=int(self.device[index]),
            prune_heads=float(self.prune_heads[index]),
            prune_ffn=float(self.prune_ffn[index]),
            rank=int(self.rank[index]),
            cut=cut or None,
            share=float(self.share[index]),
            local_steps=int(self.local_steps[index]),
            codec=self.codecs[int(self.codec_index[index])],
        )

    def take(self, rows: Ints) -> Assignments:
        """Return a plan of these rows alone, in rising order.

        >>> whole = whole_model(np.arange(3), rank=8, local_steps=1, share=np.ones(3))
        >>> whole.take(np.array([0, 2])).device.tolist()
        [0, 2]
        """
        columns = {
            each.name: getattr(self, each.name)[rows]
            for each in fields(self)
            if each.name != "codecs"
        }
        return replace(self, **columns)


def _check(
    name: str, column: Floats | Ints, low: float, high: float, *, below: bool = False
) -> None:
    wrong = ~np.isfinite(column) | (column < low) | (column >= high if below else column > high)
    if np.any(wrong):
        place = int(np.flatnonzero(wrong)[0])
        bracket = f"[{low:g}, {high:g})" if below else f"[{low:g}, {high:g}]"
        raise MethodError(
            f"{name} must be in {bracket}, got {column[place]:g} in row {place} of the plan; "
            "a method must clip its decisions"
        )


def whole_model(device: Ints, *, rank: int, local_steps: int, share: Floats) -> Assignments:
    """Return the plain assignment: nothing pruned, nothing cut, nothing compressed."""
    count = device.shape[0]
    zeros = np.zeros(count)
    return Assignments(
        device=device, prune_heads=zeros, prune_ffn=zeros,
        rank=np.full(count, rank, np.int64), share=share,
        local_steps=np.full(count, local_steps, np.int64),
        cut=np.zeros(count, np.int64), codec_index=np.zeros(count, np.int64),
    )  # fmt: skip
