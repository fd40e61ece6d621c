"""The server's state and the devices' reports as tensors that cross a network, and back.

The broadcast is the same for every device of a round, so it is packed once: adapters, head, what has
been merged, and the importance that slices are chosen by. What one device has left of a cumulative
pruning goes to that device alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from airtune.engine.devices import pack_devices, unpack_devices
from airtune.engine.message import Tensors, pack_tensors, unpack_tensors
from airtune.errors import CodecError
from airtune.model.importance import Importance, Means
from airtune.model.kept import Kept
from airtune.model.mending import Grams
from airtune.model.state import DeviceState, GlobalState
from airtune.plan import ModelShape
from airtune.work.downloads import Broadcast, opened

_GROUPS = ("adapters", "head", "merged")


def pack_state(
    state: GlobalState, sent: Broadcast | None = None, *, shape: ModelShape | None = None
) -> tuple[bytes, tuple[str, ...]]:
    """Return what every device of a round is sent, and the order of its tensors.

    Args:
        state: the server's.
        sent: the adapters and head as coded, whose payloads travel beside it; None = as they are.
        shape: of the unpruned model, with `sent`.
    """
    if sent is not None:
        state = replace(state, adapters={}, head={})
    tensors: dict[str, torch.Tensor] = {}
    for group in _GROUPS:
        found: Tensors = getattr(state, group)
        tensors |= {f"{group}/{name}": tensor for name, tensor in found.items()}
    tensors |= importance_tensors(state.importance)
    if state.kept is not None:
        rows = {"groups": state.kept.groups, "channels": state.kept.channels}
        tensors |= {
            f"kept/{kind}/{block:06d}": torch.from_numpy(row)
            for kind, blocks in rows.items()
            for block, row in enumerate(blocks)
        }
    if sent is not None and shape is not None:
        tensors |= {
            f"sent/{kind}": torch.from_numpy(
                np.stack([np.isin(np.arange(size), row) for row in rows])
            )
            for kind, size, rows in (
                ("groups", shape.kv_groups, sent.kept.groups),
                ("channels", shape.ffn, sent.kept.channels),
            )
        } | {"sent/rank": torch.tensor([sent.rank])}
    return pack_tensors(tensors), tuple(tensors)


def unpack_state(
    content: bytes,
    order: tuple[str, ...],
    *,
    round: int,
    own: bytes | None = None,
    payloads: Mapping[str, bytes] | None = None,
    blank: GlobalState | None = None,
    shape: ModelShape | None = None,
    grams: Grams | None = None,
) -> GlobalState:
    """Return the state that a device works from.

    Args:
        content: from `pack_state`.
        order: of its tensors.
        round: whose state it is.
        own: from `pack_own`; None = nothing of this device's own.
        payloads: of a coded broadcast, by group; None or {} = the adapters came as they are.
        blank: with payloads: any state of this model, for names and sizes.
        shape: with payloads: of the unpruned model.
        grams: second moments, which travel beside it.

    Raises:
        CodecError: if it is damaged or incomplete.
    """
    tensors = unpack_tensors(content)
    if set(order) != tensors.keys():
        raise CodecError("the broadcast lacks tensors that its header names; ask for it again")
    ordered = {name: tensors[name] for name in order}
    groups = {group: _under(f"{group}/", ordered) for group in _GROUPS}
    if payloads and blank is not None and shape is not None:
        kept, rank = _read_sent(_under("sent/", ordered), shape)
        found = opened(blank, payloads, kept, rank, shape=shape)
        groups |= {"adapters": found.adapters, "head": found.head}
    return GlobalState(
        round=round,
        adapters=groups["adapters"],
        head=groups["head"],
        importance=read_importance(_under("importance/", ordered)),
        kept=_read_kept(_under("kept/", ordered)),
        devices={} if own is None else _unpack_own(own),
        merged=groups["merged"],
        grams=grams,
    )


def pack_own(state: GlobalState, device: int) -> bytes | None:
    """Return what one device has left and knows, None where pruning is not cumulative."""
    known = state.devices.get(device)
    if known is None:
        return None
    arrays = pack_devices({device: known})
    return pack_tensors({name: torch.from_numpy(array) for name, array in arrays.items()})


def without_scores(state: GlobalState) -> GlobalState:
    """Return a state without importance, for rounds in which nothing is sliced."""
    return replace(state, importance=None)


def importance_tensors(importance: Importance | None) -> dict[str, torch.Tensor]:
    """Return scores and means as tensors; {} for None."""
    if importance is None:
        return {}
    arrays = {"groups": importance.groups, "channels": importance.channels}
    if importance.means is not None:
        arrays |= {"attention": importance.means.attention, "ffn": importance.means.ffn}
    return {
        f"importance/{name}": torch.from_numpy(np.ascontiguousarray(array))
        for name, array in arrays.items()
    }


def read_importance(tensors: Tensors, shape: ModelShape | None = None) -> Importance | None:
    """Return what `importance_tensors` was given, names without their prefix.

    Args:
        tensors: as received.
        shape: of the unpruned model, where the sender is not trusted; None = do not look.

    Raises:
        CodecError: if an array is missing or of another shape than the model's.
    """
    if not tensors:
        return None
    arrays = {name: np.asarray(tensor.numpy(), np.float64) for name, tensor in tensors.items()}
    if not {"groups", "channels"} <= arrays.keys():
        raise CodecError("importance needs groups and channels; ask for it again")
    means = None
    if "attention" in arrays and "ffn" in arrays:
        means = Means(arrays["attention"], arrays["ffn"])
    found = Importance(arrays["groups"], arrays["channels"], means)
    if shape is not None:
        _check_importance(found, shape)
    return found


def _check_importance(found: Importance, shape: ModelShape) -> None:
    wanted = {
        "groups": shape.kv_groups,
        "channels": shape.ffn,
        "attention": shape.heads * shape.head_dim,
        "ffn": shape.ffn,
    }
    arrays = {"groups": found.groups, "channels": found.channels}
    if found.means is not None:
        arrays |= {"attention": found.means.attention, "ffn": found.means.ffn}
    for name, array in arrays.items():
        if array.shape != (shape.blocks, wanted[name]):
            raise CodecError(
                f"importance of {name} must have shape {(shape.blocks, wanted[name])}, got "
                f"{array.shape}"
            )
        if np.isinf(array).any():
            raise CodecError(f"importance of {name} is not finite; it is refused")


def _read_kept(tensors: Tensors) -> Kept | None:
    if not tensors:
        return None
    groups, channels = (
        tuple(row.numpy() for _, row in sorted(_under(kind, tensors).items()))
        for kind in ("groups/", "channels/")
    )
    return Kept(groups, channels)


def _read_sent(tensors: Tensors, shape: ModelShape) -> tuple[Kept, int]:
    """Return the slice and rank that a coded broadcast holds."""
    sizes = {"groups": (shape.blocks, shape.kv_groups), "channels": (shape.blocks, shape.ffn)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != sizes | {"rank": (1,)}:
        raise CodecError(
            f"the broadcast must say which of {sizes} it holds, and its rank; got {found}; ask for "
            "it again"
        )
    groups, channels = (
        tuple(np.flatnonzero(row) for row in tensors[kind].numpy()) for kind in sizes
    )
    return Kept(groups, channels), int(tensors["rank"][0])


def _unpack_own(content: bytes) -> Mapping[int, DeviceState]:
    arrays = {name: tensor.numpy() for name, tensor in unpack_tensors(content).items()}
    try:
        return unpack_devices(arrays)
    except (KeyError, IndexError, ValueError) as error:
        raise CodecError(f"what this device has left is damaged: {error}") from error


def _under(prefix: str, tensors: Tensors) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
