"""How an update crosses the air: its difference to what the device was sent, coded.

Both ends know the reference: the slice, of the device's rank, of the adapters and head that were
broadcast. The differences of all A factors are one payload, those of all B factors another and those
of a trained head a third, each laid out as one column (n, 1): factors of one kind move by
like amounts, a header and a mean are paid three times an update however many layers there are, and
the largest changes are chosen over the whole model. The identity codes the tensors themselves, so
that they arrive bit for bit.

With error feedback a device adds what coding has lost so far to its next update. What is lost is
kept on the full grid, so a device whose slice, rank or cut changes takes what belongs to the new
one and the rest waits; where the grid itself changes, what was lost is dropped. Feedback means
nothing where the aggregation refactors or restarts the adapters: their axes change every round.

The same functions serve every engine: one process encodes and decodes, two send the payloads.

Source: error feedback as in 1-bit SGD (Seide et al., 2014); the layout is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from airtune.codec import decode, encode
from airtune.errors import CheckpointError, CodecError
from airtune.model.kept import Kept
from airtune.model.lora import slice_of, take
from airtune.model.stages import held_by_device
from airtune.model.state import GlobalState, Update
from airtune.plan import CodecSpec, ModelShape, WorkSpec

Tensors: TypeAlias = Mapping[str, torch.Tensor]
"""Adapters and head tensors by their names, which never coincide."""
Values = NDArray[np.float32]

GROUPS = ("A", "B", "head")
"""What one payload holds, in the order of coding."""


@dataclass(frozen=True, slots=True)
class CodedUpdate:
    """An update as it is sent."""

    payloads: Mapping[str, bytes]
    """By group; a group without a tensor is left out."""
    lost: Tensors
    """What the other end will not have of it, by the names of the reference."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all payloads."""
        return sum(map(len, self.payloads.values()))


def returned_of(
    state: GlobalState, shape: ModelShape, kept: Kept, rank: int, *, cut: int, work: WorkSpec
) -> dict[str, torch.Tensor]:
    """Return what a device was sent of all that it sends back in a method's local work.

    One that is cut returns its own blocks, unless they are frozen, and the head where labels stay.

    Args:
        state: the server's, as broadcast.
        shape: the unpruned model.
        kept: the device's slice.
        rank: the device's.
        cut: blocks that the device holds; 0 = all.
        work: the method's local work.
    """
    held, head = state.adapters, dict(state.head)
    if cut:
        held = held_by_device(held, 0 if work.device_frozen else cut)
        head = head if work.labels == "stay" else {}
    return take(held, shape, kept, rank) | head


def encode_update(
    update: Update,
    reference: Tensors,
    spec: CodecSpec,
    stream: np.random.Generator,
    residual: Tensors | None = None,
) -> CodedUpdate:
    """Code what of an update stands in the reference.

    Args:
        update: the device's, with all tensors of the reference.
        reference: from `returned_of`.
        spec: the codec.
        stream: for stochastic rounding.
        residual: what was lost before, by the names of the reference; None = nothing.

    Raises:
        CodecError: if a tensor is not finite, or too large for half precision.
    """
    tensors = update.adapters | update.head
    payloads: dict[str, bytes] = {}
    lost: dict[str, torch.Tensor] = {}
    for group, names in groups_of(reference):
        parts = [tensors[name].detach().float().cpu() for name in names]
        if spec.kind != "identity":
            parts = [
                part - reference[name].float().cpu()
                for name, part in zip(names, parts, strict=True)
            ]
        if residual is not None:
            parts = [part + residual[name] for name, part in zip(names, parts, strict=True)]
        column = as_column(parts)
        payloads[group] = encode(column, replace(spec, predict=False), stream)
        missing = column - decode(payloads[group], max_elements=column.size)
        lost |= cut_up(missing, {name: reference[name] for name in names})
    return CodedUpdate(payloads, lost)


def decode_groups(
    payloads: Mapping[str, bytes], like: Tensors, *, what: str
) -> dict[str, torch.Tensor]:
    """Return the tensors that came in payloads, one a group, float32 and in the order of the groups.

    Args:
        payloads: by group, as received.
        like: names and shapes that they must have.
        what: comes, for messages.

    Raises:
        CodecError: if a payload is missing, damaged, or of another size.
    """
    wanted = dict(groups_of(like))
    if payloads.keys() != wanted.keys():
        raise CodecError(
            f"{what} comes in payloads {sorted(wanted)}, got {sorted(payloads)}; ask for it again"
        )
    found: dict[str, torch.Tensor] = {}
    for group, names in wanted.items():
        part = {name: like[name] for name in names}
        size = sum(tensor.numel() for tensor in part.values())
        column = decode(payloads[group], max_elements=size)
        if column.shape != (size, 1):
            raise CodecError(
                f"payload {group} must hold {size} numbers in a column, got {column.shape}; ask "
                "for it again"
            )
        found |= cut_up(column, part)
    return found


def decode_update(
    update: Update, payloads: Mapping[str, bytes], reference: Tensors, spec: CodecSpec
) -> Update:
    """Return the update as the server has it.

    Args:
        update: all that is sent beside the tensors; of its own tensors those that the reference
            does not name stay.
        payloads: by group, as received.
        reference: from `returned_of`, for the slice, rank and cut of this update.
        spec: the codec that the device was told.

    Raises:
        CodecError: if a payload is missing, damaged, or of another size than the reference's.
    """
    found = decode_groups(payloads, reference, what="an update of this slice")
    if spec.kind != "identity":
        found = {name: reference[name].cpu().float() + part for name, part in found.items()}
    typed = {name: part.to(reference[name].dtype) for name, part in found.items()}
    return replace(
        update,
        adapters=update.adapters | {k: v for k, v in typed.items() if group_of(k) != "head"},
        head=update.head | {k: v for k, v in typed.items() if group_of(k) == "head"},
    )


@dataclass(slots=True)
class Residuals:
    """What coding has lost of each device's updates so far, on the full grid."""

    _held: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)

    def of(
        self, update: Update, state: GlobalState, shape: ModelShape, reference: Tensors
    ) -> dict[str, torch.Tensor]:
        """Return what an update's device has to make up for, by the names of its reference."""
        held = self._grid(update.device, state)
        return {
            name: held[name][_place(name, shape, update)].clone()
            if name in held
            else torch.zeros(tensor.shape)
            for name, tensor in reference.items()
        }

    def keep(self, update: Update, state: GlobalState, shape: ModelShape, lost: Tensors) -> None:
        """Take over what coding this update has lost; the rest of the grid stays."""
        held = self._grid(update.device, state)
        whole = state.adapters | state.head
        for name, tensor in lost.items():
            full = held.setdefault(name, torch.zeros(whole[name].shape))
            full[_place(name, shape, update)] = tensor
        self._held[update.device] = held

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return everything as named arrays, for a checkpoint."""
        return {
            f"{device}/{name}": tensor.numpy()
            for device, held in self._held.items()
            for name, tensor in held.items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Residuals:
        """Return the residuals that `arrays` described.

        Raises:
            CheckpointError: if a name is not one of theirs.
        """
        found: dict[int, dict[str, torch.Tensor]] = {}
        for name, array in arrays.items():
            device, _, tensor = name.partition("/")
            if not device.isdecimal() or not tensor:
                raise CheckpointError(f"{name!r} is no part of what coding has lost")
            values = torch.from_numpy(np.array(array, np.float32))
            found.setdefault(int(device), {})[tensor] = values
        return cls(found)

    def _grid(self, device: int, state: GlobalState) -> dict[str, torch.Tensor]:
        """Return a device's tensors, those of another grid than the state's dropped."""
        whole = state.adapters | state.head
        held = self._held.get(device, {})
        return {
            name: tensor
            for name, tensor in held.items()
            if name in whole and whole[name].shape == tensor.shape
        }


def groups_of(tensors: Tensors) -> Iterator[tuple[str, list[str]]]:
    """Yield each group that has a tensor, with the names of its tensors in their order."""
    for group in GROUPS:
        names = [name for name in tensors if group_of(name) == group]
        if names:
            yield group, names


def group_of(name: str) -> str:
    """Return the group of a tensor: adapters are named by their block."""
    return name[-1] if name.partition(".")[0].isdecimal() else "head"


def as_column(parts: list[torch.Tensor]) -> Values:
    """Return tensors as one column of numbers, (n, 1)."""
    flat = torch.cat([part.reshape(-1) for part in parts])
    return np.asarray(flat.numpy(), np.float32).reshape(-1, 1)


def cut_up(column: Values, like: Tensors) -> dict[str, torch.Tensor]:
    """Return a column as tensors shaped like those given, in their order."""
    ends = np.cumsum([item.numel() for item in like.values()])[:-1]
    return {
        name: torch.from_numpy(piece.copy()).reshape(tensor.shape)
        for (name, tensor), piece in zip(
            like.items(), np.split(column.reshape(-1), ends), strict=True
        )
    }


def _place(name: str, shape: ModelShape, update: Update) -> tuple[slice | torch.Tensor, ...]:
    """Return where a tensor of an update stands on the full grid."""
    if group_of(name) == "head":
        return (slice(None),)
    return slice_of(name, shape, update.kept, update.rank)
