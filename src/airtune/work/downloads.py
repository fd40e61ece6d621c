"""How the server's adapters cross the air to the devices of a round: coded, and no more than they keep.

One broadcast serves all: the union of what the round's devices keep, at the largest of their ranks.
It is laid out as updates are (`airtune.work.uploads`): a payload for the A factors, one for the B
factors, one for a trained head. Devices work from what comes out of the codec; the server keeps its
own weights and adds the change that devices made of what they were sent, so nothing that coding lost
stays in them (`airtune.model.server`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from airtune.codec import encode
from airtune.model.kept import Kept
from airtune.model.lora import slice_of, take
from airtune.model.state import GlobalState
from airtune.plan import Assignment, CodecSpec, Ints, ModelShape, WorkSpec
from airtune.work.network import kept_by
from airtune.work.uploads import as_column, decode_groups, groups_of


@dataclass(frozen=True, slots=True)
class Broadcast:
    """What the devices of a round are sent."""

    state: GlobalState
    """What they work from: the server's state as it comes out of the codec."""
    kept: Kept
    rank: int
    payloads: Mapping[str, bytes]

    @property
    def size_bytes(self) -> int:
        """Bytes of all payloads."""
        return sum(map(len, self.payloads.values()))


def code_broadcast(
    state: GlobalState,
    rows: Iterable[Assignment],
    spec: CodecSpec,
    stream: np.random.Generator,
    *,
    shape: ModelShape,
    work: WorkSpec,
) -> Broadcast:
    """Code the server's adapters for the devices of a round.

    Args:
        state: the server's, with importance where somebody prunes.
        rows: what each is told, at least one.
        spec: the codec.
        stream: for stochastic rounding.
        shape: of the unpruned model.
        work: the method's local work.

    Raises:
        CodecError: if a tensor is not finite, or too large for half precision.
    """
    rows = tuple(rows)
    kept, rank = _union(rows, state, shape, work), max(row.rank for row in rows)
    sliced = take(state.adapters, shape, kept, rank) | dict(state.head)
    payloads = {
        group: encode(
            as_column([sliced[name].detach().float().cpu() for name in names]),
            replace(spec, predict=False),
            stream,
        )
        for group, names in groups_of(sliced)
    }
    return Broadcast(opened(state, payloads, kept, rank, shape=shape), kept, rank, payloads)


def opened(
    state: GlobalState, payloads: Mapping[str, bytes], kept: Kept, rank: int, *, shape: ModelShape
) -> GlobalState:
    """Return a state with what the payloads hold in place of its own adapters and head.

    Args:
        state: with tensors of the full grid; what is not sent stays as it is there.
        payloads: by group.
        kept: the slice that was sent.
        rank: likewise.
        shape: of the unpruned model.

    Raises:
        CodecError: if a payload is missing, damaged or of another size.
    """
    sliced = take(state.adapters, shape, kept, rank) | dict(state.head)
    adapters = {name: tensor.clone() for name, tensor in state.adapters.items()}
    head = dict(state.head)
    for name, tensor in decode_groups(payloads, sliced, what="a broadcast").items():
        typed = tensor.to(sliced[name].dtype)
        if name in head:
            head[name] = typed
        else:
            adapters[name][slice_of(name, shape, kept, rank)] = typed
    return replace(state, adapters=adapters, head=head)


def _union(
    rows: tuple[Assignment, ...], state: GlobalState, shape: ModelShape, work: WorkSpec
) -> Kept:
    """Return all that some device keeps."""
    alike = {
        (row.prune_heads, row.prune_ffn, row.device if state.devices else 0): row for row in rows
    }
    found = [kept_by(row, state, shape, work) for row in alike.values()]

    def joined(kind: str) -> tuple[Ints, ...]:
        blocks = zip(*(getattr(kept, kind) for kept in found), strict=True)
        return tuple(np.unique(np.concatenate(block)) for block in blocks)

    return Kept(joined("groups"), joined("channels"))
