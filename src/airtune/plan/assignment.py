"""What a device is told for one round: the five knobs, in columns over devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from airtune.errors import MethodError
from airtune.plan.shape import Bools, Floats, Ints

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
    cut: int
    """Blocks on the device, where the model is cut; 0 = it trains the whole model."""
    share: float
    local_steps: int
    codec: CodecSpec
    upload: CodecSpec | None = None
    """How its update is coded; None = as the recipe's `upload` says."""


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
    """Of what crosses a cut."""
    upload_index: Ints | None = None
    """Index into `uploads`; None = every update is coded as the recipe's `upload` says."""
    uploads: tuple[CodecSpec, ...] = ()
    """Of updates."""
    probability: Floats | None = None
    """Probability with which each device was asked this round, in (0, 1]; its update counts 1 over it
    times. None = all are asked."""

    def __post_init__(self) -> None:
        for column in self._columns().values():
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
        if self.upload_index is not None:
            _check("upload_index", self.upload_index, 0, len(self.uploads) - 1)
        if self.probability is not None:
            _check("probability", self.probability, 1e-3, 1.0)
        if np.any(np.diff(self.device) <= 0):
            raise MethodError("devices of a plan must be strictly increasing; sort them, each once")

    def __len__(self) -> int:
        return int(self.device.shape[0])

    def __iter__(self) -> Iterator[Assignment]:
        return (self.row(index) for index in range(len(self)))

    def row(self, index: int) -> Assignment:
        """Return what the device at this position is told."""
        return Assignment(
            device=int(self.device[index]),
            prune_heads=float(self.prune_heads[index]),
            prune_ffn=float(self.prune_ffn[index]),
            rank=int(self.rank[index]),
            cut=int(self.cut[index]),
            share=float(self.share[index]),
            local_steps=int(self.local_steps[index]),
            codec=self.codecs[int(self.codec_index[index])],
            upload=None if self.upload_index is None else self.uploads[self.upload_index[index]],
        )

    def times(self, device: Sequence[int]) -> Floats:
        """Return how many times the updates of some devices of the plan count.

        >>> whole = whole_model(np.array([1, 4]), rank=8, local_steps=1, share=np.ones(2))
        >>> replace(whole, probability=np.array([1.0, 0.25])).times([4, 1]).tolist()
        [4.0, 1.0]
        """
        if self.probability is None:
            return np.ones(len(device))
        return np.asarray(1.0 / self.probability[np.searchsorted(self.device, device)], np.float64)

    def upload_groups(self, usual: CodecSpec) -> tuple[tuple[CodecSpec, Bools], ...]:
        """Return the codecs of updates, each with which rows have it, shape (n,).

        Args:
            usual: the recipe's, of a plan that names none.

        >>> whole = whole_model(np.arange(2), rank=8, local_steps=1, share=np.ones(2))
        >>> [(spec.kind, rows.tolist()) for spec, rows in whole.upload_groups(CodecSpec("fp16"))]
        [('fp16', [True, True])]
        """
        if self.upload_index is None:
            return ((usual, np.ones(len(self), np.bool_)),)
        index = self.upload_index
        return tuple((spec, index == position) for position, spec in enumerate(self.uploads))

    def coded_as(self, specs: Sequence[CodecSpec | None], usual: CodecSpec) -> Assignments:
        """Return the plan with these codecs of its updates, one a row.

        Args:
            specs: n codecs; None = the recipe's.
            usual: the recipe's.
        """
        if all(spec is None for spec in specs):
            return self
        uploads = tuple(dict.fromkeys(spec or usual for spec in specs))
        index = np.array([uploads.index(spec or usual) for spec in specs], np.int64)
        return replace(self, uploads=uploads, upload_index=index)

    def take(self, rows: Ints) -> Assignments:
        """Return a plan of these rows alone, in rising order.

        >>> whole = whole_model(np.arange(3), rank=8, local_steps=1, share=np.ones(3))
        >>> whole.take(np.array([0, 2])).device.tolist()
        [0, 2]
        """
        columns: dict[str, Any] = {name: each[rows] for name, each in self._columns().items()}
        return replace(self, **columns)

    def _columns(self) -> dict[str, NDArray[Any]]:
        named = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {name: column for name, column in named if isinstance(column, np.ndarray)}


def _check(
    name: str, column: Floats | Ints, low: float, high: float, *, below: bool = False
) -> None:
    wrong = ~np.isfinite(column) | (column < low) | (column >= high if below else column > high)
    if np.any(wrong):
        index = int(np.flatnonzero(wrong)[0])
        bracket = f"[{low:g}, {high:g})" if below else f"[{low:g}, {high:g}]"
        raise MethodError(
            f"{name} must be in {bracket}, got {column[index]:g} in row {index} of the plan; "
            "a method must clip its decisions"
        )


def whole_model(device: Ints, *, rank: int, local_steps: int, share: Floats) -> Assignments:
    """Return the plain assignment: nothing pruned, nothing cut, nothing compressed."""
    count = device.shape[0]
    zeros = np.zeros(count)
    return Assignments(
        device=device,
        prune_heads=zeros,
        prune_ffn=zeros,
        rank=np.full(count, rank, np.int64),
        share=share,
        local_steps=np.full(count, local_steps, np.int64),
        cut=np.zeros(count, np.int64),
        codec_index=np.zeros(count, np.int64),
    )
