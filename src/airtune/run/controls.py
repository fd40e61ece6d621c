"""The plain controls of a comparison, which federate nothing, on the ordinary loop.

    untuned     the base as it is: a round in which nobody is there
    local-only  every device alone on its own data, the same steps, judged on its own share
    pooled      all data at the server, as many steps as the fleet makes together; needs central data

`local-only` and `pooled` cost no traffic; their time is the slowest device's, or the server's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from airtune.cost import energy_j, peak_memory, train_flops
from airtune.data import DeviceData, FederatedData
from airtune.engine.base import Engine, Execution, Split
from airtune.engine.checks import Divide
from airtune.engine.local import LocalEngine
from airtune.fleet import Fleet, load_fleet
from airtune.methods.memoryless import Memoryless
from airtune.model.state import GlobalState
from airtune.plan import (
    Assignments,
    Floats,
    Method,
    Need,
    Observation,
    Problem,
    Results,
    RoundPlan,
    State,
    WorkSpec,
    whole_model,
)
from airtune.run.build import Pieces
from airtune.work.batches import join_examples
from airtune.work.evaluate import evaluate
from airtune.work.network import tuned_network
from airtune.work.train import Job, Outcome, train

CONTROLS = ("untuned", "local-only", "pooled")
"""Names of the registry's controls that are carried out here."""


@dataclass(frozen=True, slots=True)
class WholeModel(Memoryless):
    """The decider of a control: everybody trains the whole model."""

    needs: frozenset[Need] = frozenset()

    def plan(
        self, problem: Problem, state: State, observation: Observation
    ) -> tuple[RoundPlan, State]:
        """Tell every available device to train the whole model."""
        device = np.flatnonzero(observation.available)
        told = whole_model(
            device, rank=problem.workload.rank, local_steps=problem.workload.local_steps,
            share=np.full(len(device), 1.0 / max(len(device), 1)),
        )  # fmt: skip
        return RoundPlan(
            observation.round, told, ("control: the whole model",) * len(device)
        ), state


def control(name: str, pieces: Pieces) -> tuple[Method, Problem, Engine]:
    """Return the method, problem and engine of a control."""
    method = Method(name, WholeModel(), work=WorkSpec())
    if name == "untuned":
        return method, replace(pieces.problem, rounds=1), UntunedEngine(_federated(pieces))
    if name == "local-only":
        return method, pieces.problem, AloneEngine(pieces, _federated(pieces))
    fleet = load_fleet(_server_as_fleet(pieces.assets.fleet), seed=pieces.problem.seed)
    data = pooled(pieces.assets.data)
    work = pieces.problem.workload
    problem = replace(
        pieces.problem,
        devices=fleet.profiles(np.array([len(data.devices[0].train)])),
        workload=replace(work, local_steps=work.local_steps * len(pieces.assets.fleet)),
        deadline_s=None,
    )
    inner = LocalEngine(fleet, problem, pieces.assets.base, data,
                        settings=replace(pieces.engine, participation=1.0, dropout=0.0))  # fmt: skip
    return method, problem, PooledEngine(inner, _federated(pieces))


def pooled(data: FederatedData) -> FederatedData:
    """Return the data as if one device held everything."""
    trained = [device.train for device in data.devices]
    held_out = [device.validation for device in data.devices]
    return replace(data, devices=(DeviceData(
        train=join_examples((part, range(len(part))) for part in trained),
        validation=join_examples((part, range(len(part))) for part in held_out),
    ),))  # fmt: skip


@dataclass(frozen=True, slots=True)
class UntunedEngine:
    """Nobody is ever there."""

    federated: LocalEngine

    def observe(self, round: int, time_s: float) -> Observation:
        """Return a round without devices."""
        seen = self.federated.observe(round, time_s)
        return replace(seen, available=np.zeros_like(seen.available))

    def execute(
        self, plan: RoundPlan, state: GlobalState, divide: Divide, *, start_s: float
    ) -> Execution:
        """Execute what the fleet would; the loop never asks for it."""
        return self.federated.execute(plan, state, divide, start_s=start_s)

    def over_cap(self, plan: RoundPlan, state: GlobalState) -> tuple[str, ...]:
        """Return that nobody exceeds a cap: nothing crosses a device's link."""
        return ("",) * len(plan.assignments)

    def idle_until_s(self, time_s: float, idle_s: float) -> float:
        """Return when to look again."""
        return time_s + idle_s

    def evaluate(self, state: GlobalState, split: Split) -> Mapping[str, float]:
        """Return the quality of the base."""
        return self.federated.evaluate(state, split)

    def snapshot(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what the fleet remembers."""
        return self.federated.snapshot()

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a snapshot."""
        self.federated.restore(arrays)

    def close(self) -> None:
        """Close the fleet's engine."""
        self.federated.close()


@dataclass(frozen=True, slots=True)
class PooledEngine:
    """Trains at the server on everything and is judged as the fleet is."""

    inner: LocalEngine
    federated: LocalEngine

    def observe(self, round: int, time_s: float) -> Observation:
        """Return the server's own state."""
        return self.inner.observe(round, time_s)

    def execute(
        self, plan: RoundPlan, state: GlobalState, divide: Divide, *, start_s: float
    ) -> Execution:
        """Train at the server."""
        done = self.inner.execute(plan, state, divide, start_s=start_s)
        free = np.zeros(len(plan.assignments))
        moved = done.results.download_s + done.results.upload_s
        results = replace(
            done.results, download_s=free, upload_s=free, download_bytes=free, upload_bytes=free,
            finish_s=done.results.finish_s - moved,
        )  # fmt: skip
        return replace(done, results=results, end_s=done.start_s + float(results.compute_s.max()))

    def over_cap(self, plan: RoundPlan, state: GlobalState) -> tuple[str, ...]:
        """Return that nobody exceeds a cap: nothing crosses a device's link."""
        return ("",) * len(plan.assignments)

    def idle_until_s(self, time_s: float, idle_s: float) -> float:
        """Return when to look again."""
        return time_s + idle_s

    def evaluate(self, state: GlobalState, split: Split) -> Mapping[str, float]:
        """Return the quality on the devices' own shares."""
        return self.federated.evaluate(state, split)

    def snapshot(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what the server remembers."""
        return self.inner.snapshot()

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a snapshot."""
        self.inner.restore(arrays)

    def close(self) -> None:
        """Close both engines."""
        self.inner.close()
        self.federated.close()


@dataclass(frozen=True, slots=True)
class AloneEngine:
    """Every device goes on from its own last adapters.

    The adapters of all devices stand in one `GlobalState`, each under `"{device}/"`, so that they
    are saved and restored with the checkpoint; before the first round all share the fresh ones.
    """

    pieces: Pieces
    federated: LocalEngine

    def observe(self, round: int, time_s: float) -> Observation:
        """Return what the fleet's engine sees; a device alone needs no link."""
        seen = self.federated.observe(round, time_s)
        return replace(seen, available=np.ones_like(seen.available))

    def execute(
        self, plan: RoundPlan, state: GlobalState, divide: Divide, *, start_s: float
    ) -> Execution:
        """Train every device from its own state."""
        problem, told = self.pieces.problem, plan.assignments
        outcomes = [self._train(plan, state, place) for place in range(len(told))]
        mine = {
            f"{outcome.device}/{name}": tensor
            for outcome in outcomes
            for name, tensor in self._after(state, outcome).adapters.items()
        }
        heads = {
            f"{outcome.device}/{name}": tensor
            for outcome in outcomes
            for name, tensor in self._after(state, outcome).head.items()
        }
        flops = train_flops(problem.shape, problem.workload, told)
        compute_s = flops / self.pieces.assets.fleet.flops_at(plan.round)[told.device]
        results = self._results(told, outcomes, flops=flops, compute_s=compute_s)
        return Execution(
            results=results, updates=(), state=replace(state, adapters=mine, head=heads),
            start_s=start_s, end_s=start_s + float(compute_s.max(initial=0.0)),
            bandwidth_hz=np.full(len(told), np.nan),
            memory_bytes=self.pieces.assets.fleet.memory_bytes[told.device],
            faults=tuple(outcome.reason for outcome in outcomes),
        )  # fmt: skip

    def over_cap(self, plan: RoundPlan, state: GlobalState) -> tuple[str, ...]:
        """Return that nobody exceeds a cap: nothing crosses a device's link."""
        return ("",) * len(plan.assignments)

    def idle_until_s(self, time_s: float, idle_s: float) -> float:
        """Return when to look again."""
        return time_s + idle_s

    def evaluate(self, state: GlobalState, split: Split) -> Mapping[str, float]:
        """Return the mean quality of the devices' own models, weighted by their data.

        On the validation split each is judged on its own share, on the test split on all of it.
        """
        data, chunk = self.pieces.assets.data, self.pieces.problem.workload.loss_chunk
        rows: list[tuple[float, float, float]] = []
        for device, held in enumerate(data.devices):
            examples = held.validation if split == "validation" else data.test
            if len(examples):
                network = tuned_network(self.pieces.assets.base, of_device(state, device),
                                        scale=self.pieces.engine.train.scale)  # fmt: skip
                found = evaluate(network.network, examples, chunk=chunk)
                weight = float(self.pieces.problem.devices.weight[device])
                accuracy = math.nan if found.accuracy is None else found.accuracy
                rows.append((weight, found.loss, accuracy))
        return _summary(np.array(rows))

    def snapshot(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what the fleet remembers; a device alone keeps all in the state."""
        return self.federated.snapshot()

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a snapshot."""
        self.federated.restore(arrays)

    def close(self) -> None:
        """Close the fleet's engine."""
        self.federated.close()

    def _train(self, plan: RoundPlan, state: GlobalState, place: int) -> Outcome:
        row = plan.assignments.row(place)
        job = Job(row.device, row, self.pieces.assets.data.devices[row.device].train, 1.0)
        (outcome,) = train(
            self.pieces.assets.base, of_device(state, row.device), [job],
            settings=self.pieces.engine.train, work=WorkSpec(),
            workload=self.pieces.problem.workload, seed=self.pieces.problem.seed, round=plan.round,
        )  # fmt: skip
        return outcome

    def _after(self, state: GlobalState, outcome: Outcome) -> GlobalState:
        """Return a device's state after its round; the one before where its update is refused."""
        before = of_device(state, outcome.device)
        if outcome.update is None:
            return before
        return replace(before, adapters=outcome.update.adapters, head=outcome.update.head)

    def _results(
        self, told: Assignments, outcomes: list[Outcome], *, flops: Floats, compute_s: Floats
    ) -> Results:
        problem, nothing = self.pieces.problem, np.zeros(len(told))
        return Results(
            device=told.device, status=np.array([outcome.status for outcome in outcomes]),
            download_s=nothing, compute_s=compute_s, upload_s=nothing, finish_s=compute_s,
            download_bytes=nothing, upload_bytes=nothing, flops=flops,
            loss_first=np.array([outcome.loss_first for outcome in outcomes]),
            loss_last=np.array([outcome.loss_last for outcome in outcomes]),
            samples=np.array([outcome.samples for outcome in outcomes]),
            peak_bytes=peak_memory(problem.shape, problem.workload, told).total,
            energy_j=energy_j(problem, told.device, compute_s=compute_s, upload_s=nothing),
            importance=np.full(len(told), np.nan),
        )  # fmt: skip


def of_device(state: GlobalState, device: int) -> GlobalState:
    """Return one device's state out of the common one."""
    prefix = f"{device}/"
    if not any(name.startswith(prefix) for name in state.adapters):
        return state
    adapters, head = (
        {name.removeprefix(prefix): tensor for name, tensor in group.items()
         if name.startswith(prefix)}
        for group in (state.adapters, state.head)
    )  # fmt: skip
    return replace(state, adapters=adapters, head=head)


def _summary(rows: Floats) -> dict[str, float]:
    """Turn rows of (weight, loss, accuracy) into the figures that engines report."""
    weight = rows[:, 0] / rows[:, 0].sum()
    loss = float(rows[:, 1] @ weight)
    worst = max(1, math.ceil(0.1 * len(rows)))
    figures = {"loss": loss, "worst_tenth": float(np.sort(rows[:, 1])[-worst:].mean())}
    if np.isnan(rows[:, 2]).any():
        return figures | {"perplexity": math.exp(min(loss, 700.0))}
    return figures | {
        "accuracy": float(rows[:, 2] @ weight),
        "worst_tenth_accuracy": float(np.sort(rows[:, 2])[:worst].mean()),
    }


def _federated(pieces: Pieces) -> LocalEngine:
    assets = pieces.assets
    return LocalEngine(
        assets.fleet, pieces.problem, assets.base, assets.data, settings=pieces.engine
    )


def _server_as_fleet(fleet: Fleet) -> dict[str, object]:
    return {
        "name": "server",
        "summary": "the edge server, with all data",
        "links": {"none": {"kind": "dedicated", "capacity": {"up_mbps": 1e6, "down_mbps": 1e6}}},
        "devices": [{
            "name": "server", "link": "none", "gflops_per_s": fleet.server.flops_per_s / 1e9,
            "memory_gib": fleet.server.memory_bytes / 2**30, "power_w": 1.0,
        }],
    }  # fmt: skip
