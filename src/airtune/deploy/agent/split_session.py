"""A device in a split round, over the stream that its task names."""

from __future__ import annotations

from collections.abc import Callable

from airtune.engine.message import Task
from airtune.engine.stream import Connection, DeviceRound, run_device
from airtune.errors import MismatchError
from airtune.model.base import BaseModel
from airtune.model.images import Examples
from airtune.model.state import GlobalState
from airtune.plan import Assignment
from airtune.split import DeviceEnd, Samples, SplitContext, SplitJob
from airtune.wire.channel import Way


def run_session(
    task: Task,
    row: Assignment,
    *,
    base: BaseModel,
    state: GlobalState,
    data: Examples,
    way: Way,
    pace: Callable[[int, float], float] | None,
    memory: Samples,
) -> DeviceRound:
    """Take this device through its split round; `memory` is of its samples and changed by it.

    Raises:
        MismatchError: if the task names no stream.
        TrainingError: if the server refuses it or cannot be reached.
    """
    endpoint, setup = task.endpoint, task.setup
    if endpoint is None:
        raise MismatchError(
            f"round {task.round} splits the model, but the task names no stream; it is refused"
        )
    context = SplitContext.of(
        base,
        state,
        settings=setup.train,
        work=setup.work,
        workload=setup.workload,
        seed=setup.seed,
        round=task.round,
    )
    end = DeviceEnd(context, {0: SplitJob(task.device, row, data, 1.0)}, memory={0: memory})
    rate = task.upload_bps if task.is_paced else None
    paced = None
    if pace is not None and rate is not None:
        wait, at = pace, rate

        def paced(size_bytes: int) -> None:
            wait(size_bytes, at)

    return run_device(
        end,
        Connection(
            way,
            endpoint.token,
            endpoint.run,
            pace=paced,
            most_bytes=endpoint.most_bytes,
            upload_bps=task.upload_bps,
        ),
    )
