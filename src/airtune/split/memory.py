"""What both ends of a cut remember of samples from round to round, and how they agree on it.

Every message that carries samples bears a number drawn for it, its stamp, and either end keeps with
a sample the stamp of the last message that carried it. A sample is known where both stamps are the
same. When a stream begins, the server lists what it has, and the device forgets whatever is not
so at its own end. An end that has started anew, or a message that never came, thus costs sending
samples anew and nothing else. The server alone drops what was made with another cut or, where the
device part is frozen, with other adapters below it.

    the list    number of a sample u32, stamp u64; one a sample
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from airtune.cost.most import LISTED_BYTES
from airtune.errors import CheckpointError, CodecError
from airtune.model.stages import held_by_device
from airtune.plan import Assignment, Ints
from airtune.split.context import SplitContext
from airtune.work.wire import Values

_ENTRY = np.dtype([("number", "<u4"), ("stamp", "<u8")])


@dataclass(frozen=True, slots=True)
class Held:
    """A sample as one end remembers it."""

    stamp: int
    """Of the message that carried it last."""
    rows: Values
    """Its last reconstruction, (tokens, width); none at a frozen device, which needs no more than
    the stamp."""
    labels: Ints
    """At the server, where the device part is frozen and labels travel: one a token, or its class."""


Samples: TypeAlias = dict[int, Held]
"""By number: the place of a sample among its device's data."""


def list_of(samples: Samples) -> bytes:
    """Return the list with which the server begins a stream."""
    entries = [(number, held.stamp) for number, held in samples.items()]
    return np.array(entries, _ENTRY).tobytes()


def agree(samples: Samples, listed: bytes) -> None:
    """Forget the samples that the server does not have from the same message.

    Args:
        samples: The device's, changed.
        listed: As it came.

    Raises:
        CodecError: if it is no list.
    """
    if len(listed) % LISTED_BYTES:
        raise CodecError(
            f"a list of samples has {LISTED_BYTES} bytes each, got {len(listed)} bytes; it is refused"
        )
    entries = np.frombuffer(listed, _ENTRY)
    stamps = dict(zip(entries["number"].tolist(), entries["stamp"].tolist(), strict=True))
    for number in [n for n, held in samples.items() if stamps.get(n) != held.stamp]:
        del samples[number]


def made_with(context: SplitContext, row: Assignment) -> str:
    """Return what a remembered activation depends on: the cut, and what is frozen below it, at the rank."""
    cut = row.cut
    if not context.work.device_frozen:
        return str(cut)
    digest = 0
    for tensors in (context.state.adapters, context.state.merged):
        for name, tensor in sorted(held_by_device(tensors, cut).items()):
            values = tensor.detach().float().cpu().contiguous().numpy()
            digest = zlib.crc32(values.tobytes(), zlib.crc32(name.encode(), digest))
    return f"{cut}-{row.rank}-{digest:08x}"


@dataclass(slots=True)
class CutMemory:
    """The samples of all devices, as the server remembers them.

    It grows with the samples seen, by `tokens * width` numbers each.
    """

    _made_with: dict[int, str] = field(default_factory=dict)
    _samples: dict[int, Samples] = field(default_factory=dict)

    def of(self, device: int, made_with: str) -> Samples:
        """Return a device's samples, none if they were made with something else."""
        if self._made_with.get(device) != made_with:
            self._made_with[device], self._samples[device] = made_with, {}
        return self._samples[device]

    def opened(self, context: SplitContext, rows: Sequence[Assignment]) -> dict[int, Samples]:
        """Return the samples of the devices of a round, for the round to change.

        Args:
            context: The round's.
            rows: One a device.

        Returns:
            By column, of those whose samples are remembered.
        """
        return {
            index: self.of(row.device, made_with(context, row))
            for index, row in enumerate(rows)
            if context.remembers(row.codec)
        }

    def copy(self) -> CutMemory:
        """Return the same, which goes its own way from here."""
        return CutMemory(dict(self._made_with), {n: dict(s) for n, s in self._samples.items()})

    def held_bytes(self, device: int) -> int:
        """Return what the server holds for a device."""
        return sum(held.rows.nbytes for held in self._samples.get(device, {}).values())

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return everything as named arrays, six a device, for a checkpoint."""
        found: dict[str, NDArray[np.generic]] = {}
        for device, stamp in self._made_with.items():
            samples = self._samples[device]
            rows, labels = (
                [getattr(held, what) for held in samples.values()] for what in ("rows", "labels")
            )
            found |= {
                f"{device}.stamp": np.array(stamp),
                f"{device}.samples": np.array(list(samples), np.int64),
                f"{device}.lengths": np.array([len(row) for row in rows], np.int64),
                f"{device}.rows": np.concatenate(rows) if rows else np.empty((0, 0)),
                f"{device}.counts": np.array([len(label) for label in labels], np.int64),
                f"{device}.labels": np.concatenate(labels) if labels else np.empty(0, np.int64),
            }
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> CutMemory:
        """Return the memory that `arrays` described.

        Raises:
            CheckpointError: if an array is not one of a memory, or one is missing.
        """
        memory, parts = cls(), ("stamp", "samples", "lengths", "rows", "counts", "labels")
        for name in arrays:
            device, _, what = name.partition(".")
            if not device.isdecimal() or what not in parts:
                raise CheckpointError(f"{name!r} is no part of a memory of cut activations")
        for device in dict.fromkeys(name.partition(".")[0] for name in arrays):
            try:
                stamp, samples, lengths, rows, counts, labels = (
                    arrays[f"{device}.{what}"] for what in parts
                )
            except KeyError as error:
                raise CheckpointError(f"a memory of cut activations lacks {error}") from error
            pieces = np.split(np.asarray(rows, np.float32), np.cumsum(lengths)[:-1])
            marks = np.split(np.asarray(labels, np.int64), np.cumsum(counts)[:-1])
            memory._made_with[int(device)] = str(stamp)
            memory._samples[int(device)] = {
                int(sample): Held(0, piece, mark)
                for sample, piece, mark in zip(samples, pieces, marks, strict=False)
            }
        return memory
