"""Updates and scores as devices sent them: decoded, and held against what the server expects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from airtune.engine.exchange import read_importance
from airtune.engine.message import Reply, RunSetup, unpack_tensors
from airtune.engine.moments import BLOB, read_grams
from airtune.engine.remote.answers import Answer, number_of
from airtune.errors import CodecError
from airtune.model.importance import Importance
from airtune.model.mending import Grams
from airtune.model.state import GlobalState, Update
from airtune.plan import Assignment, ModelShape
from airtune.work.jobs import Outcome
from airtune.work.network import kept_by
from airtune.work.uploads import GROUPS, decode_update, returned_of

SMALL_BYTES = 1 << 20
"""What an answer without tensors may hold."""


def outcome_of(
    row: Assignment,
    state: GlobalState,
    reply: Reply,
    answer: Answer,
    *,
    setup: RunSetup,
    shape: ModelShape,
) -> Outcome:
    """Return what a device's round gave.

    Args:
        row: what it did.
        state: where it started.
        reply: what it said.
        answer: the same, checked, with its tensors.
        setup: of the run.
        shape: of the unpruned model.

    Raises:
        CodecError: if the update cannot be decoded or claims what it was not told.
        ModelError: if it does not fit the model.
    """
    update = _update(row, state, reply, answer.blobs, setup=setup, shape=shape)
    figures = {
        name: number_of(reply.figures.get(name))
        for name in ("loss_first", "loss_last", "importance")
    }
    return Outcome(
        row.device,
        "ok" if update is not None else "refused",
        update,
        figures["loss_first"],
        figures["loss_last"],
        reply.samples,
        figures["importance"],
        reply.rank_left,
        answer.fault,
    )


def no_outcome(device: int, reason: str) -> Outcome:
    """Return the outcome of a device whose update does not count."""
    return Outcome(device, "refused", None, math.nan, math.nan, 0, reason=reason)


def _update(
    row: Assignment,
    state: GlobalState,
    reply: Reply,
    blobs: Mapping[str, bytes],
    *,
    setup: RunSetup,
    shape: ModelShape,
) -> Update | None:
    """Return an update as the server has it; what was kept is worked out, not believed."""
    if reply.status != "ok":
        return None
    if not 0 <= reply.rank_left <= row.rank:
        raise CodecError(
            f"the rank left must be between 0 and the {row.rank} it was told, got {reply.rank_left}"
        )
    most = setup.workload.batch * row.local_steps
    if not 0 <= reply.samples <= most:
        raise CodecError(f"samples must be between 0 and {most} of its steps, got {reply.samples}")
    work = setup.work
    kept = kept_by(row, state, shape, work)
    reference = returned_of(state, shape, kept, row.rank, cut=row.cut, work=work)
    importance = _scores(blobs, shape) if "importance" in blobs else None
    told = Update(row.device, reply.round, kept, row.rank, {}, {}, reply.samples, importance)
    payloads = {name: blobs[name] for name in GROUPS if name in blobs}
    update = decode_update(told, payloads, reference, setup.workload.upload_of(row))
    order = [name for name in reference if name in update.adapters]
    return replace(update, adapters={name: update.adapters[name] for name in order})


@dataclass(frozen=True, slots=True)
class Measured:
    """What a device measured of the dense model."""

    importance: Importance
    grams: Grams | None
    """Second moments; None where they were not asked for, or its memory does not hold them."""


def measured_of(blobs: Mapping[str, bytes], shape: ModelShape) -> Measured:
    """Return what a device measured of the dense model, of whose scores none may be missing.

    Raises:
        CodecError: if it is damaged, incomplete or not of this model.
    """
    found = _scores(blobs, shape)
    for name, scores in (("groups", found.groups), ("channels", found.channels)):
        if not np.isfinite(scores).all():
            raise CodecError(
                f"importance of {name} has {np.count_nonzero(~np.isfinite(scores))} scores "
                "that are not finite; it is refused"
            )
    return Measured(found, read_grams(blobs[BLOB], shape) if BLOB in blobs else None)


def _scores(blobs: Mapping[str, bytes], shape: ModelShape) -> Importance:
    found = unpack_tensors(blobs.get("importance", b""))
    named = {name.removeprefix("importance/"): tensor for name, tensor in found.items()}
    importance = read_importance(named, shape)
    if importance is None:
        raise CodecError("the importance asked for is missing")
    return importance


def scores_bytes(shape: ModelShape) -> int:
    """Return the most that scores and means can take, in double precision."""
    columns = shape.kv_groups + 2 * shape.ffn + shape.heads * shape.head_dim
    return 8 * shape.blocks * columns + SMALL_BYTES


def update_bytes(state: GlobalState, shape: ModelShape) -> int:
    """Return the most that an update can take; no codec makes it larger than it is by half."""
    numbers = sum(tensor.numel() for tensor in (*state.adapters.values(), *state.head.values()))
    return 6 * numbers + scores_bytes(shape)
