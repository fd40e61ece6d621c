"""What a split round over a network gives: one ordinary update a device, from both ends' halves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from airtune.engine.stream.task import ServerRound, SplitTask
from airtune.model.kept import keep_all
from airtune.model.lora import Adapters, Head
from airtune.model.state import Update
from airtune.work.train import Outcome


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
    task: SplitTask, server: ServerRound, parts: Mapping[int, DevicePart]
) -> tuple[Outcome, ...]:
    """Return an outcome for each row of the task, in its order.

    A device's update is its own adapters on the blocks it holds and the server's on the rest: of the
    copy that served it, where each has its own. A device that has returned nothing, or whom the
    server put out, has none.

    Args:
        task: The round.
        server: What the server has.
        parts: By device.
    """
    outcomes = []
    for place, row in enumerate(task.rows):
        losses = server.losses[: max(server.steps[place], 1), place]
        part, reason = parts.get(row.device), server.refused.get(row.device, "")
        update = None
        if not reason and part is None:
            reason = f"it returned nothing; the server saw {server.steps[place]} of its steps"
        if part is not None and not reason:
            update = _update(task, server, place, part)
            if not all(bool(t.isfinite().all()) for t in (update.adapters | update.head).values()):
                update, reason = None, "a tensor of the update was not finite"
        samples = task.workload.batch * (part.steps if part else 0)
        outcomes.append(
            Outcome(
                row.device,
                "refused" if reason else "ok",
                update,
                float(losses[0]),
                float(losses[-1]),
                samples,
                reason=reason,
            )
        )
    return tuple(outcomes)


def _update(task: SplitTask, server: ServerRound, place: int, part: DevicePart) -> Update:
    row = task.rows[place]

    def tensor_of(name: str, before: torch.Tensor) -> torch.Tensor:
        return part.adapters.get(name, server.servers[place].get(name, before))

    return Update(
        device=row.device, round=task.round, kept=keep_all(task.base.shape), rank=row.rank,
        adapters={name: tensor_of(name, old) for name, old in task.state.adapters.items()},
        head=part.head if task.work.labels == "stay" else server.server_heads[place],
        samples=task.workload.batch * part.steps,
    )  # fmt: skip
