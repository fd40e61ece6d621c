"""An engine whose devices are elsewhere and whose clock is replayed.

The devices do their work by messages (`remote.devices`); times, bytes and who is late come from the
cost model and the links exactly as on the local engine, so that the same seed gives the same plans,
payloads and losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from airtune.cost import dense_pass_bytes
from airtune.data.federated import FederatedData
from airtune.engine.base import Execution, Split
from airtune.engine.checks import Divide
from airtune.engine.local import LocalEngine, LocalSettings
from airtune.engine.message import Seat
from airtune.engine.remote.devices import Remote, Trained
from airtune.engine.remote.received import Received
from airtune.engine.remote.split import (
    Serve,
    ServedSplitter,
)
from airtune.errors import DataError, TrainingError
from airtune.fleet.fleet import Fleet
from airtune.model.base import BaseModel
from airtune.model.importance import Importance
from airtune.model.state import GlobalState
from airtune.plan import (
    Assignment,
    Need,
    Problem,
    RoundPlan,
    WorkSpec,
)
from airtune.work.downloads import Broadcast
from airtune.work.evaluate import weigh
from airtune.work.train import Outcome


def judges_of(problem: Problem, fleet: Fleet) -> frozenset[int]:
    """Return the devices whose memory holds the whole model, and that so can judge it."""
    dense_bytes = dense_pass_bytes(problem.shape, problem.workload)
    return frozenset(np.flatnonzero(fleet.memory_bytes >= dense_bytes).tolist())


class ReplayEngine(LocalEngine):
    """The local engine with its devices elsewhere: their work is real, the clock is replayed."""

    def __init__(
        self, fleet: Fleet, problem: Problem, base: BaseModel, data: FederatedData, *,
        remote: Remote, needs: frozenset[Need] = frozenset(), work: WorkSpec | None = None,
        settings: LocalSettings | None = None, serve: Serve | None = None,
    ) -> None:  # fmt: skip
        """Hold the fleet; see `LocalEngine`.

        Args:
            fleet: devices and links.
            problem: unmasked, with the number of examples that each device reported.
            base: the frozen dense model.
            data: of which only the server's test set is used.
            remote: reaches the devices.
            needs: what the method asks to know.
            work: switches of the method's local work.
            settings: participation and the like.
            serve: starts the stream of split rounds; None = there are none.
        """
        super().__init__(fleet, problem, base, data, needs=needs, work=work, settings=settings)
        self._remote, self._serve = remote, serve
        self._sent: Broadcast | None = None
        self._received = Received(self._problem, remote)
        self._uplink = self._received
        self._splitter = ServedSplitter(
            self._problem, fleet, base, data, settings=self._settings.train, run=remote.run_name,
            train=self._have_trained, serve=serve, dropout=self._settings.dropout,
        )  # fmt: skip

    def evaluate(self, state: GlobalState, split: Split) -> Mapping[str, float]:
        """Return the quality of the model that the user will get; {} where nobody can judge it.

        The test set is the server's. Validation data are the devices', and asked are those whose
        memory holds the whole model; where none does, the server judges what it has of them.

        Raises:
            TrainingError: if no device could judge it.
        """
        if split == "test":
            return super().evaluate(state, split) if len(self._data.test) else {}
        judges = judges_of(self._problem, self._fleet)
        if not judges:
            is_here = any(len(device.validation) for device in self._data.devices)
            return super().evaluate(state, split) if is_here else {}
        asked = sorted(self._remote.online() & judges)
        found = self._remote.evaluate(asked, state, deadline_s=self._judging_s())
        if not found:
            raise TrainingError(
                f"none of {len(asked)} devices could judge the model on its own data; "
                "airtune status shows who is there"
            )
        order = sorted(found)
        weights = self._problem.devices.weight[order]
        try:
            return weigh([found[device] for device in order], weights)
        except DataError as error:
            raise TrainingError(str(error)) from error

    def execute(
        self, plan: RoundPlan, state: GlobalState, divide: Divide, *, start_s: float
    ) -> Execution:
        """Have the devices work and the virtual clock run.

        Raises:
            MethodError: if the plan is not to be executed, or not over a stream.
        """
        self._received.coded_bytes = {}
        return super().execute(plan, state, divide, start_s=start_s)

    def _broadcast(self, plan: RoundPlan, state: GlobalState) -> Broadcast | None:
        self._sent = super()._broadcast(plan, state)
        return self._sent

    def _judging_s(self) -> float | None:
        """Return how long devices may take to judge or measure the model; None = patience."""
        return None

    def _train(
        self, plan: RoundPlan, state: GlobalState, places: Sequence[int]
    ) -> dict[int, Outcome]:
        rows = [plan.assignments.row(place) for place in places]
        done = self._have_trained(rows, state, plan)
        return {place: done[row.device].outcome for place, row in zip(places, rows, strict=True)}

    def _have_trained(
        self, rows: Sequence[Assignment], state: GlobalState, plan: RoundPlan,
        seats: Mapping[int, Seat] | None = None,
    ) -> dict[int, Trained]:  # fmt: skip
        done = self._remote.train(
            rows, state, round=plan.round, learning_rate=plan.learning_rate, seats=seats,
            sent=self._sent,
        )  # fmt: skip
        self._received.coded_bytes |= {
            device: item.coded_bytes for device, item in done.items() if item.coded_bytes
        }
        return done

    def _reports(
        self, devices: Sequence[int], state: GlobalState
    ) -> tuple[dict[int, Importance], tuple[str, ...]]:
        found, answers = self._remote.measure(devices, state, deadline_s=self._judging_s())
        faults = {device: one.fault for device, one in answers.items() if device not in found}
        if not found:
            raise TrainingError(
                "no device measured importance, which pruning needs: "
                f"{'; '.join(sorted(set(faults.values())))}"
            )
        names = self._problem.devices.names
        return found, tuple(f"{names[device]}: {fault}" for device, fault in faults.items())
