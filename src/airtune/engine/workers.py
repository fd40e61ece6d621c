"""Who does the devices' work: this process (`LocalWorkers`), or devices elsewhere (`remote.workers`).

An engine is workers and a clock: `virtual` lets time pass by the cost model, `remote.real` measures it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from airtune.data.federated import FederatedData
from airtune.engine.base import EngineSettings, Split, with_work
from airtune.engine.forecast import Forecast
from airtune.engine.gathered import under
from airtune.engine.limits import RoundLimits
from airtune.engine.splitting import Splitter
from airtune.engine.uplink import Uplink
from airtune.errors import FleetError
from airtune.fleet.fleet import Fleet
from airtune.keys import generator
from airtune.model.base import BaseModel
from airtune.model.importance import Importance
from airtune.model.mending import Grams
from airtune.model.state import GlobalState
from airtune.plan import Problem, RoundPlan, WorkSpec
from airtune.work.downloads import Broadcast, code_broadcast
from airtune.work.evaluate import evaluate, evaluate_devices, exact_match
from airtune.work.importance import measure_device_grams, measure_importance, measured_batches
from airtune.work.jobs import Job, Outcome
from airtune.work.network import current_base, tuned_network
from airtune.work.train import train


class Workers(Protocol):
    """The devices' work of a run, without its time."""

    @property
    def problem(self) -> Problem:
        """Of the run, unmasked, with its local work."""
        ...

    @property
    def base(self) -> BaseModel:
        """The frozen dense model."""
        ...

    @property
    def uplink(self) -> Uplink:
        """How updates come to the server."""
        ...

    @property
    def splitter(self) -> Splitter:
        """Has devices train that are cut."""
        ...

    def begin_round(self, sent: Broadcast | None) -> None:
        """Take what the devices of the round are sent; None = the state as it is."""
        ...

    def train(self, plan: RoundPlan, state: GlobalState, rows: Sequence[int]) -> dict[int, Outcome]:
        """Have devices train the whole model or a slice; takes and returns by row of the plan."""
        ...

    def scores(
        self, devices: Sequence[int], state: GlobalState
    ) -> tuple[dict[int, Importance], tuple[str, ...]]:
        """Have devices measure importance on their own data; by device, and why some have none."""
        ...

    def grams(self, devices: Sequence[int], state: GlobalState) -> Grams:
        """Have devices measure second moments of the dense model's inputs; returns them pooled."""
        ...

    def evaluate(self, state: GlobalState, split: Split) -> Mapping[str, float]:
        """Return the quality of the model that the user will get; off the clock."""
        ...

    def close(self) -> None:
        """Give back whatever is held."""
        ...


class LocalWorkers:
    """Devices in this process."""

    def __init__(
        self,
        fleet: Fleet,
        problem: Problem,
        base: BaseModel,
        data: FederatedData,
        *,
        work: WorkSpec | None = None,
        settings: EngineSettings,
    ) -> None:
        """Pin the threads until `close`: another number of them gives other last bits.

        Args:
            fleet: devices and links.
            problem: unmasked: with speeds, memory and powers.
            base: the frozen dense model.
            data: of as many devices as the fleet has.
            work: switches of the method's local work; None = the problem's.
            settings: learning rate and the like.

        Raises:
            FleetError: if fleet, problem and data differ in their number of devices.
        """
        if not len(fleet) == len(problem.devices) == len(data.devices):
            raise FleetError(
                f"the fleet has {len(fleet)} devices, the problem {len(problem.devices)} and the "
                f"data {len(data.devices)}; set fleet.devices so that they agree"
            )
        self.problem = with_work(problem, problem.work if work is None else work)
        self.base, self._data, self._settings = base, data, settings
        self.uplink = Uplink(self.problem)
        self.splitter = Splitter(self.problem, fleet, base, data, settings=settings.train)
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(settings.threads)

    def close(self) -> None:
        """Give the threads back."""
        torch.set_num_threads(self._threads_before)

    def begin_round(self, sent: Broadcast | None) -> None:
        """Do nothing: devices here work from the state that they are given."""

    def train(self, plan: RoundPlan, state: GlobalState, rows: Sequence[int]) -> dict[int, Outcome]:
        """Have devices train; takes and returns by row of the plan."""
        told = [plan.assignments.row(row) for row in rows]
        weight = self.problem.devices.weight
        jobs = [
            Job(one.device, one, self._data.devices[one.device].train, float(weight[one.device]))
            for one in told
        ]
        outcomes = train(
            self.base,
            state,
            jobs,
            settings=self._settings.train.at(plan.learning_rate),
            work=self.problem.work,
            workload=self.problem.workload,
            seed=self.problem.seed,
            round=plan.round,
        )
        return dict(zip(rows, outcomes, strict=True))

    def scores(
        self, devices: Sequence[int], state: GlobalState
    ) -> tuple[dict[int, Importance], tuple[str, ...]]:
        """Have devices measure importance on their own data; nobody fails here."""
        base = current_base(self.base, state)
        measured = {
            device: measure_importance(
                base,
                self._data.devices[device].train,
                criterion=self.problem.work.importance,
                batch=self.problem.workload.batch,
                batches=measured_batches(self.problem.work, self.problem.workload.batch),
                seed=self.problem.seed,
                device=device,
            )
            for device in devices
        }
        return measured, ()

    def grams(self, devices: Sequence[int], state: GlobalState) -> Grams:
        """Have devices measure second moments of the dense model's inputs; returns them pooled."""
        weight = self.problem.devices.weight
        held = [(one, self._data.devices[one].train, float(weight[one])) for one in devices]
        return measure_device_grams(
            current_base(self.base, state),
            held,
            batch=self.problem.workload.batch,
            batches=measured_batches(self.problem.work, self.problem.workload.batch),
            seed=self.problem.seed,
        )

    def evaluate(self, state: GlobalState, split: Split) -> Mapping[str, float]:
        """Return the quality of the model that the user will get; off the clock.

        Raises:
            DataError: if there is nothing to evaluate on.
        """
        scale, chunk = self._settings.train.scale, self.problem.workload.loss_chunk
        lora = tuned_network(self.base, state, scale=scale, work=self.problem.work)
        if split == "validation":
            held = [device.validation for device in self._data.devices]
            return evaluate_devices(lora.network, held, self.problem.devices.weight, chunk=chunk)
        quality = evaluate(lora.network, self._data.test, chunk=chunk)
        figures = {
            "loss": quality.loss,
            "perplexity": quality.perplexity,
            "accuracy": quality.accuracy,
        }
        answer_of, tokenizer = self._settings.answer_of, self.base.tokenizer
        if answer_of is not None and tokenizer is not None and self._data.test_prompts:
            figures["exact_match"] = exact_match(
                lora.network,
                self._data.test_prompts,
                tokenizer=tokenizer,
                answer_of=answer_of,
                max_new_tokens=self._settings.max_new_tokens,
            )
        return {name: value for name, value in figures.items() if value is not None}


def broadcast(problem: Problem, plan: RoundPlan, state: GlobalState) -> Broadcast | None:
    """Return what the devices of a plan are sent, None where it is the state as it is."""
    spec = problem.workload.download
    if spec.kind == "identity" or not len(plan.assignments):
        return None
    stream = generator(problem.seed, "download", plan.round)
    return code_broadcast(
        state, plan.assignments, spec, stream, shape=problem.shape, work=problem.work
    )


def snapshot(
    workers: Workers, limits: RoundLimits, forecast: Forecast | None
) -> dict[str, NDArray[np.generic]]:
    """Return what an engine remembers from round to round beside the global state.

    Args:
        workers: with what devices remember of uploads and cuts.
        limits: with what devices used of the month.
        forecast: with what was learnt of devices; None = nothing is learnt.
    """
    parts = {
        "uplink": workers.uplink.snapshot(),
        "cut": workers.splitter.snapshot(),
        "month": limits.traffic_budget.snapshot(),
        "learnt": {} if forecast is None else forecast.snapshot(),
    }
    return {f"{part}/{name}": array for part, held in parts.items() for name, array in held.items()}


def restore(
    workers: Workers,
    limits: RoundLimits,
    forecast: Forecast,
    arrays: Mapping[str, NDArray[np.generic]],
) -> None:
    """Go on from a snapshot.

    Raises:
        CheckpointError: if it is not one of such an engine.
    """
    workers.uplink.restore(under("uplink/", arrays))
    workers.splitter.restore(under("cut/", arrays))
    limits.traffic_budget.restore(under("month/", arrays))
    forecast.restore(under("learnt/", arrays))
