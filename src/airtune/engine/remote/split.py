"""Split rounds of real devices: a ticket begins them, the stream carries their steps.

The task tells a device where the stream is and what lets it in; its answer holds the half that it
has trained, and the stream has the other. On the replayed clock the server waits in every step for
all its devices, and what crossed passes on the virtual clock as if it had been computed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from airtune.data.federated import FederatedData
from airtune.engine.message import SplitEndpoint
from airtune.engine.remote.devices import Trained
from airtune.engine.splitting import Splitter
from airtune.engine.stream import OpenRound, ServerRound, SplitTask, StreamServer, StreamTiming
from airtune.errors import MethodError
from airtune.fleet.fleet import Fleet
from airtune.model.base import BaseModel
from airtune.model.state import GlobalState
from airtune.plan import Assignment, Bools, Ints, Problem, RoundPlan
from airtune.split import DevicePart, SplitResult, join_round
from airtune.work.jobs import TrainSettings

JOIN_S = 240.0
"""How long a device may take from its task to its stream: a worker may have to start."""

PATIENCE_S = 7 * 86400.0
"""How long a replayed round may really take: its clock is another one."""

Serve = Callable[[], tuple[StreamServer, str]]
"""Returns the stream's server and how devices address it; `:PORT` = at the server they know."""
Train = Callable[
    [Sequence[Assignment], GlobalState, RoundPlan, Mapping[int, SplitEndpoint]],
    Mapping[int, Trained],
]
"""Has the devices of some rows of a plan train from a state, in their split sessions; by device."""


@dataclass(frozen=True, slots=True)
class ServedSplit:
    """A split round that is being served."""

    task: SplitTask
    opened: OpenRound
    address: str

    @property
    def endpoints(self) -> dict[int, SplitEndpoint]:
        """What each device is told."""
        return {
            device: SplitEndpoint(self.address, token, self.task.run)
            for device, token in self.opened.tokens.items()
        }

    def join(self, trained: Mapping[int, Trained]) -> tuple[dict[int, Trained], ServerRound]:
        """End the round; returns what came of every device, both halves together."""
        self.opened.close()
        result = self.opened.wait()
        task, batch = self.task, self.task.workload.batch
        updates = {
            index: update
            for index, row in enumerate(task.rows)
            if (update := trained[row.device].outcome.update) is not None
        }
        parts = {}
        for index, update in updates.items():
            steps, seen = update.samples // batch, result.steps[index]
            if steps > seen:
                result.log.refuse(
                    index, f"it says that it took {steps} steps, the server saw {seen}"
                )
            parts[index] = DevicePart(update.adapters, update.head, steps)
        joined = join_round(task.context, task.rows, result.parts, result.log, parts)
        up = result.log.up_bytes.sum(0)
        down = result.log.down_bytes.sum(0) + result.listed_bytes
        found = {}
        for index, outcome in enumerate(joined):
            item, crossed = trained[outcome.device], (int(up[index]), int(down[index]))
            answer = replace(
                item.answer,
                received_bytes=item.answer.received_bytes + crossed[0],
                sent_bytes=item.answer.sent_bytes + crossed[1],
            )
            if outcome.update is None:
                outcome = replace(outcome, reason=answer.fault or outcome.reason)
                status = answer.status if answer.status != "ok" else "refused"
                answer = replace(answer, status=status, fault=outcome.reason)
            row = item.row
            if row is not None and outcome.update is not None and outcome.update.part < 1:
                row = replace(row, local_steps=outcome.update.samples // batch)
            found[outcome.device] = replace(
                item,
                answer=answer,
                outcome=outcome,
                row=row,
                step_bytes=crossed,
                server_s=float(result.server_s[index]),
            )
        return found, result


def open_split(
    serve: Serve,
    rows: Sequence[Assignment],
    *,
    run: str,
    round: int,
    base: BaseModel,
    state: GlobalState,
    problem: Problem,
    settings: TrainSettings,
    timing: StreamTiming,
) -> ServedSplit:
    """Begin to serve rows that are cut.

    Raises:
        MethodError: if a stream does not carry what the method asks for.
    """
    cut = tuple(rows)
    server, address = serve()
    task = SplitTask(
        run=run,
        round=round,
        base=base,
        state=state,
        rows=cut,
        weights=tuple(float(problem.devices.weight[row.device]) for row in cut),
        settings=settings,
        work=problem.work,
        workload=problem.workload,
        seed=problem.seed,
        timing=timing,
        samples=tuple(int(problem.devices.samples[row.device]) for row in cut),
    )
    return ServedSplit(task, server.open(task), address)


class ServedSplitter(Splitter):
    """Cuts of the replayed clock: devices elsewhere do the steps, all together, and time is virtual."""

    def __init__(
        self,
        problem: Problem,
        fleet: Fleet,
        base: BaseModel,
        data: FederatedData,
        *,
        settings: TrainSettings,
        run: str,
        train: Train,
        serve: Serve | None,
        dropout: float = 0.0,
    ) -> None:
        """See `Splitter`.

        Args:
            problem: see there.
            fleet: see there.
            base: see there.
            data: see there.
            settings: see there.
            run: its name, by which streams know it.
            train: has the devices of rows train, in their split sessions, from a state.
            serve: starts the stream; None = there is none.
            dropout: of the recipe's fleet, which devices that are there do not replay.
        """
        super().__init__(problem, fleet, base, data, settings=settings)
        self._run, self._train, self._serve, self._dropout = run, train, serve, dropout

    def _round(
        self, plan: RoundPlan, state: GlobalState, columns: Ints, dropped: Bools
    ) -> SplitResult:
        if self._serve is None:
            raise MethodError(no_stream(len(columns)))
        if self._dropout:
            raise MethodError(
                "the recipe has devices vanish between forward and backward (fleet.dropout), which "
                "devices that are there cannot replay; set it to 0, or leave --replay out"
            )
        rows = [plan.assignments.row(int(column)) for column in columns]
        served = open_split(
            self._serve,
            rows,
            run=self._run,
            round=plan.round,
            base=self._base,
            state=state,
            problem=self._problem,
            settings=self._settings.at(plan.learning_rate),
            timing=StreamTiming(
                window_s=math.inf, join_s=JOIN_S, answer_s=PATIENCE_S, deadline_s=PATIENCE_S
            ),
        )
        try:
            trained = self._train(rows, state, plan, served.endpoints)
            joined, result = served.join(trained)
        finally:
            served.opened.close()
        return SplitResult(
            outcomes=tuple(joined[row.device].outcome for row in rows),
            server=result.adapters,
            head=result.head,
            ledger=result.log,
            order=result.order,
            skipped=result.parts.skipped,
        )


def no_stream(count: int) -> str:
    """Return why devices cannot be cut where nothing serves them."""
    return (
        f"{count} devices are told to split the model, but this server serves no split rounds; run "
        "it under airtune server start, or choose a method without a cut"
    )


def served_record(
    task: SplitTask, result: ServerRound, trained: Mapping[int, Trained]
) -> dict[str, object]:
    """Return what a record holds of a split round of real devices, in plain values.

    Keys that the local engine writes too mean the same; what only its clock or its cost model knows
    (bounds, slots, the server's memory, when each part of a step ended) is left out.

    Args:
        task: the round.
        result: what the server has at its end.
        trained: what came of its devices, as the post brought it, without the stream's bytes.
    """
    answers = [trained[row.device].answer for row in task.rows]
    return {
        "steps": max(result.steps),
        "device": [row.device for row in task.rows],
        "device_steps": list(result.steps),
        "server_steps": result.batches,
        "skipped_steps": result.parts.skipped,
        "refused": {str(task.rows[index].device): why for index, why in result.log.refused.items()},
        "broken": list(result.broken),
        "activation_up_bytes": float(result.log.up_bytes.sum()),
        "gradient_down_bytes": float(result.log.down_bytes.sum()),
        "listed_down_bytes": float(result.listed_bytes.sum()),
        "adapter_up_bytes": float(sum(answer.received_bytes for answer in answers)),
        "adapter_down_bytes": float(sum(answer.sent_bytes for answer in answers)),
    }
