"""What a split round gives: one ordinary update a device, from both ends' halves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from airtune.model.kept import keep_all
from airtune.model.lora import Adapters, Head
from airtune.model.state import Update
from airtune.plan import Assignment
from airtune.split.context import SplitContext
from airtune.split.log import StepLog
from airtune.split.server import ServerParts
from airtune.work.jobs import Outcome


@dataclass(frozen=True, slots=True)
class DevicePart:
    """What a device returns of a split round, by whatever way its updates come."""

    adapters: Adapters
    """Of its own blocks."""
    head: Head
    """Where labels stay."""
    steps: int
    """After which it has learnt."""


def join_round(
    context: SplitContext,
    rows: Sequence[Assignment],
    server: ServerParts,
    log: StepLog,
    parts: Mapping[int, DevicePart],
) -> tuple[Outcome, ...]:
    """Return an outcome for each device of a round, in their order.

    A device's update is its own adapters on the blocks it holds and the server's on the rest: of the
    copy that served it, where each has its own. A device that has returned nothing, or whom the
    server put out, has none; one whose tensors are not finite is put out here.

    Args:
        context: The round's.
        rows: One a device.
        server: What the server has.
        log: The round's; who has no update is added to its refused.
        parts: By column.
    """
    outcomes = []
    for index, row in enumerate(rows):
        part, update = parts.get(index), None
        taken = int((log.up_bytes[:, index] > 0).sum())
        if part is None or not part.steps:
            log.refuse(index, f"it returned nothing; the server saw {taken} of its steps")
        elif index not in log.refused:
            update = _update(context, row, server, index, part)
            if not all(bool(t.isfinite().all()) for t in (update.adapters | update.head).values()):
                log.refuse(index, "a tensor of the update was not finite")
                update = None
        losses, reason = log.losses[:, index], log.refused.get(index, "")
        samples = context.workload.batch * (part.steps if part else 0)
        outcomes.append(
            Outcome(
                row.device,
                "refused" if reason else "ok",
                update,
                float(losses[0]),
                float(losses[max(taken - 1, 0)]),
                samples,
                reason=reason,
            )
        )
    return tuple(outcomes)


def _update(
    context: SplitContext, row: Assignment, server: ServerParts, column: int, part: DevicePart
) -> Update:
    held = server.servers[column]

    steps = min(part.steps, row.local_steps)

    def tensor_of(name: str, before: torch.Tensor) -> torch.Tensor:
        return part.adapters.get(name, held.get(name, before))

    return Update(
        device=row.device,
        round=context.round,
        kept=keep_all(context.shape),
        rank=row.rank,
        adapters={name: tensor_of(name, old) for name, old in context.state.adapters.items()},
        head=part.head if context.labels_stay else server.heads[column],
        samples=context.workload.batch * steps,
        part=steps / row.local_steps,
        cut=row.cut,
    )
