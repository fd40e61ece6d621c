"""What a device says in every answer: whose answer it is, and its losses."""

from __future__ import annotations

import math

from airtune.engine.message import Reply, Task
from airtune.work.train import Outcome


def reply_to(task: Task) -> Reply:
    """Return an answer to a task that says nothing yet."""
    return Reply(task.kind, task.run, task.round, task.device, task.name, task.ticket)


def figures_of(outcome: Outcome) -> dict[str, float | None]:
    """Return the losses of a device's training, and the importance it saw."""
    return {"loss_first": finite(outcome.loss_first), "loss_last": finite(outcome.loss_last),
            "importance": finite(outcome.importance)}  # fmt: skip


def finite(value: float) -> float | None:
    """Return a figure as an answer holds it; None = not finite."""
    return value if math.isfinite(value) else None
