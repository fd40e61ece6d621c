"""Split rounds of real devices: Flower starts and ends them, the stream carries their steps.

The task tells a device where the stream is and what lets it in; its answer holds the half that it
has trained, and the stream has the other. Only the real clock has such rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from airtune.engine.message import Seat
from airtune.engine.remote import Trained
from airtune.engine.stream import (
    DevicePart,
    OpenRound,
    ServerRound,
    SplitTask,
    StreamServer,
    Timing,
    join_round,
)
from airtune.model.base import BaseModel
from airtune.model.state import GlobalState
from airtune.plan import Assignment, Problem
from airtune.work.train import TrainSettings

JOIN_S = 240.0
"""How long a device may take from its task to its stream: Flower's way takes seconds."""

Serve = Callable[[], tuple[StreamServer, str]]
"""Returns the stream's server and how devices address it; `:PORT` = at the server they know."""


@dataclass(frozen=True, slots=True)
class ServedSplit:
    """A split round that is being served."""

    task: SplitTask
    opened: OpenRound
    address: str

    @property
    def seats(self) -> dict[int, Seat]:
        """What each device is told."""
        return {
            device: Seat(self.address, token, self.task.run)
            for device, token in self.opened.tokens.items()
        }

    def join(self, trained: Mapping[int, Trained]) -> tuple[dict[int, Trained], ServerRound]:
        """End the round; returns what came of every device, both halves together."""
        self.opened.close()
        result = self.opened.wait()
        parts = {
            device: DevicePart(item.outcome.update.adapters, item.outcome.update.head,
                               item.outcome.update.samples // self.task.workload.batch)
            for device, item in trained.items()
            if item.outcome.update is not None
        }  # fmt: skip
        joined = join_round(self.task, result, parts)
        up, down = np.nansum(result.up_bytes, 0), np.nansum(result.down_bytes, 0)
        found = {}
        for place, outcome in enumerate(joined):
            item = trained[outcome.device]
            answer = replace(
                item.answer,
                received_bytes=item.answer.received_bytes + int(up[place]),
                sent_bytes=item.answer.sent_bytes + int(down[place]),
            )
            if outcome.update is None:
                outcome = replace(outcome, reason=answer.fault or outcome.reason)
                status = answer.status if answer.status != "ok" else "refused"
                answer = replace(answer, status=status, fault=outcome.reason)
            found[outcome.device] = replace(item, answer=answer, outcome=outcome)
        return found, result


def open_split(
    serve: Serve, rows: Sequence[Assignment], *, run: str, round: int, base: BaseModel,
    state: GlobalState, problem: Problem, settings: TrainSettings, deadline_s: float | None,
) -> ServedSplit | None:  # fmt: skip
    """Begin to serve the rows that are cut; None where none is.

    Raises:
        MethodError: if a stream does not carry what the method asks for.
    """
    cut = tuple(row for row in rows if row.cut is not None)
    if not cut:
        return None
    server, address = serve()
    task = SplitTask(
        run=run, round=round, base=base, state=state, rows=cut,
        weights=tuple(float(problem.devices.weight[row.device]) for row in cut),
        settings=settings, work=problem.work, workload=problem.workload, seed=problem.seed,
        timing=Timing(join_s=JOIN_S, deadline_s=deadline_s or 3600.0),
    )  # fmt: skip
    return ServedSplit(task, server.open(task), address)


def served_record(
    task: SplitTask, result: ServerRound, trained: Mapping[int, Trained]
) -> dict[str, object]:
    """Return what a record holds of a split round of real devices, in plain values.

    Keys that the local engine writes too mean the same; what only its clock or its cost model knows
    (bounds, slots, the server's memory, when each part of a step ended) is left out.

    Args:
        task: the round.
        result: what the server has at its end.
        trained: what came of its devices, as Flower brought it, without the stream's bytes.
    """
    answers = [trained[row.device].answer for row in task.rows]
    return {
        "steps": max(result.steps),
        "device": [row.device for row in task.rows],
        "device_steps": list(result.steps),
        "server_steps": result.batches,
        "skipped_steps": result.skipped,
        "refused": {str(device): reason for device, reason in result.refused.items()},
        "broken": list(result.broken),
        "activation_up_bytes": float(np.nansum(result.up_bytes)),
        "gradient_down_bytes": float(np.nansum(result.down_bytes)),
        "adapter_up_bytes": float(sum(answer.received_bytes for answer in answers)),
        "adapter_down_bytes": float(sum(answer.sent_bytes for answer in answers)),
    }
