"""Devices elsewhere: they do their work by messages (`remote.devices`), wherever the clock is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from airtune.cost import dense_pass_bytes
from airtune.data.federated import FederatedData
from airtune.engine.base import EngineSettings, Split
from airtune.engine.message import SplitEndpoint
from airtune.engine.remote.devices import Remote, Trained
from airtune.engine.remote.received import Received
from airtune.engine.remote.split import Serve, ServedSplitter
from airtune.engine.workers import LocalWorkers
from airtune.errors import DataError, TrainingError
from airtune.fleet.fleet import Fleet
from airtune.model.base import BaseModel
from airtune.model.importance import Importance
from airtune.model.mending import Grams, pooled_grams
from airtune.model.state import GlobalState
from airtune.plan import Assignment, Problem, RoundPlan, WorkSpec
from airtune.work.downloads import Broadcast
from airtune.work.evaluate import weigh
from airtune.work.jobs import Outcome

_LOOK_S = 0.1
"""How often it is looked whether a device has come, where none is there."""


def judges_of(problem: Problem, fleet: Fleet) -> frozenset[int]:
    """Return the devices whose memory holds the whole model, and that so can judge it."""
    dense_bytes = dense_pass_bytes(problem.shape, problem.workload)
    return frozenset(np.flatnonzero(fleet.memory_bytes >= dense_bytes).tolist())


class RemoteWorkers:
    """Devices elsewhere; see `airtune.engine.workers.Workers`.

    On the virtual clock times, bytes and who is late come from the cost model and the links exactly
    as for devices in this process, so that the same seed gives the same plans, payloads and losses.
    """

    def __init__(
        self,
        fleet: Fleet,
        problem: Problem,
        base: BaseModel,
        data: FederatedData,
        *,
        remote: Remote,
        work: WorkSpec | None = None,
        settings: EngineSettings,
        serve: Serve | None = None,
        judging_s: float | None = None,
    ) -> None:
        """Hold what reaches them; see `LocalWorkers`.

        Args:
            fleet: devices and links.
            problem: unmasked, with the number of examples that each device reported.
            base: the frozen dense model.
            data: of which only the server's test set is used.
            remote: reaches the devices.
            work: switches of the method's local work; None = the problem's.
            settings: learning rate and the like.
            serve: starts the stream of split rounds; None = there are none.
            judging_s: how long devices may take to judge or measure the model; None = patience.
        """
        self._server = LocalWorkers(fleet, problem, base, data, work=work, settings=settings)
        self.problem, self.base = self._server.problem, base
        self.remote, self.serve = remote, serve
        self.sent: Broadcast | None = None
        """What the devices of this round are sent, where it is coded."""
        self._judging_s = judging_s
        self._grams: dict[int, Grams] = {}
        """By device, as it sent them with its scores."""
        self._judges = judges_of(problem, fleet)
        self._has_validation = any(len(device.validation) for device in data.devices)
        self._has_test = bool(len(data.test))
        self.uplink = self._received = Received(self.problem, remote)
        self.splitter = ServedSplitter(
            self.problem,
            fleet,
            base,
            data,
            settings=settings.train,
            run=remote.run_name,
            train=self._train,
            serve=serve,
            dropout=settings.dropout,
        )

    def close(self) -> None:
        """Give the threads back."""
        self._server.close()

    def wait_for_one(self, most_s: float) -> float:
        """Wait until a device can be reached, or so long; returns the seconds that passed."""
        waited_s, began_s = 0.0, time.monotonic()
        while waited_s < most_s and not self.remote.online():
            time.sleep(_LOOK_S)
            waited_s = time.monotonic() - began_s
        return waited_s

    def begin_round(self, sent: Broadcast | None) -> None:
        """Take what the devices of the round are sent."""
        self.sent, self._received.coded_bytes = sent, {}

    def train(self, plan: RoundPlan, state: GlobalState, rows: Sequence[int]) -> dict[int, Outcome]:
        """Have devices train; takes and returns by row of the plan."""
        told = [plan.assignments.row(row) for row in rows]
        done = self._train(told, state, plan)
        return {row: done[one.device].outcome for row, one in zip(rows, told, strict=True)}

    def scores(
        self, devices: Sequence[int], state: GlobalState
    ) -> tuple[dict[int, Importance], tuple[str, ...]]:
        """Have devices measure importance; by device, and why some have none.

        Raises:
            TrainingError: if none has.
        """
        measured, answers = self.remote.measure(devices, state, deadline_s=self._judging_s)
        found = {device: one.importance for device, one in measured.items()}
        self._grams = {
            device: one.grams for device, one in measured.items() if one.grams is not None
        }
        faults = {device: one.fault for device, one in answers.items() if device not in found}
        if not found:
            raise TrainingError(
                "no device measured importance, which pruning needs: "
                f"{'; '.join(sorted(set(faults.values())))}"
            )
        names = self.problem.devices.names
        return found, tuple(f"{names[device]}: {fault}" for device, fault in faults.items())

    def grams(self, devices: Sequence[int], state: GlobalState) -> Grams:
        """Return the second moments that devices sent with their scores, pooled.

        Raises:
            TrainingError: if none of them sent any.
        """
        found = {device: self._grams[device] for device in devices if device in self._grams}
        if not found:
            raise TrainingError(
                "no device sent second moments, which least squares need: their owners may have given "
                "them less memory; set train.mend to mean"
            )
        return pooled_grams(
            list(found.values()), [float(self.problem.devices.weight[one]) for one in found]
        )

    def evaluate(self, state: GlobalState, split: Split) -> Mapping[str, float]:
        """Return the quality of the model that the user will get; {} where nobody can judge it.

        The test set is the server's. Validation data are the devices', and asked are those whose
        memory holds the whole model; where not all can, the server judges if it has the data.

        Raises:
            TrainingError: if no device could judge it that is still there.
        """
        is_here = self._has_test if split == "test" else self._has_validation
        enough = len(self.problem.devices) if is_here else 1
        if split == "test" or len(self._judges) < enough:
            return self._server.evaluate(state, split) if is_here else {}
        asked = sorted(self.remote.online() & self._judges)
        found, faults = self.remote.evaluate(asked, state, deadline_s=self._judging_s)
        if not found and not self.remote.online() & self._judges:
            return {}  # who could judge it has left, or is at work in an asynchronous round
        if not found:
            raise TrainingError(
                f"none of {len(asked)} devices could evaluate the model on its own data: "
                f"{'; '.join(sorted(set(faults.values())))}"
            )
        order = sorted(found)
        weights = self.problem.devices.weight[order]
        try:
            return weigh([found[device] for device in order], weights)
        except DataError as error:
            raise TrainingError(str(error)) from error

    def _train(
        self,
        rows: Sequence[Assignment],
        state: GlobalState,
        plan: RoundPlan,
        endpoints: Mapping[int, SplitEndpoint] | None = None,
    ) -> dict[int, Trained]:
        done = self.remote.train(
            rows,
            state,
            round=plan.round,
            learning_rate=plan.learning_rate,
            endpoints=endpoints,
            sent=self.sent,
        )
        self._received.coded_bytes |= {
            device: item.coded_bytes for device, item in done.items() if item.coded_bytes
        }
        return done
