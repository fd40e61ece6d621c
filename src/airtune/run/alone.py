"""The engine of `local-only`: every device trains alone, and nothing is sent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from airtune.cost import energy_j, peak_memory, train_flops
from airtune.engine.base import Execution, Split
from airtune.engine.checks import Divide
from airtune.model.state import GlobalState
from airtune.plan import Assignments, Floats, Observation, Results, RoundPlan, WorkSpec
from airtune.run.build import Pieces
from airtune.run.no_traffic import NoTraffic
from airtune.work.evaluate import evaluate
from airtune.work.jobs import Job, Outcome
from airtune.work.network import tuned_network
from airtune.work.train import train


@dataclass(frozen=True, slots=True)
class AloneEngine(NoTraffic):
    """Every device goes on from its own last adapters.

    The adapters of all devices stand in one `GlobalState`, each under `"{device}/"`, so that they
    are saved and restored with the checkpoint; before the first round all share the fresh ones.
    """

    pieces: Pieces = field(kw_only=True)

    def observe(self, round: int, time_s: float) -> Observation:
        """Return what the fleet's engine sees; a device alone needs no link."""
        seen = self.trains.observe(round, time_s)
        return replace(seen, available=np.ones_like(seen.available))

    def execute(
        self, plan: RoundPlan, state: GlobalState, divide: Divide, *, start_s: float
    ) -> Execution:
        """Train every device from its own state."""
        problem, assignments = self.pieces.problem, plan.assignments
        outcomes = [self._train(plan, state, index) for index in range(len(assignments))]
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
        flops = train_flops(problem.shape, problem.workload, assignments)
        compute_s = flops / self.pieces.assets.fleet.flops_at(plan.round)[assignments.device]
        results = self._results(assignments, outcomes, flops=flops, compute_s=compute_s)
        return Execution(
            results=results,
            updates=(),
            state=replace(state, adapters=mine, head=heads),
            start_s=start_s,
            end_s=start_s + float(compute_s.max(initial=0.0)),
            bandwidth_hz=np.full(len(assignments), np.nan),
            memory_bytes=self.pieces.assets.fleet.memory_bytes[assignments.device],
            faults=tuple(outcome.reason for outcome in outcomes),
        )

    def evaluate(self, state: GlobalState, split: Split) -> Mapping[str, float]:
        """Return the mean quality of the devices' own models, weighted by their data.

        On the validation split each is judged on its own share, on the test split on all of it.
        """
        data, chunk = self.pieces.assets.data, self.pieces.problem.workload.loss_chunk
        rows: list[tuple[float, float, float]] = []
        for device, held in enumerate(data.devices):
            examples = held.validation if split == "validation" else data.test
            if len(examples):
                network = tuned_network(
                    self.pieces.assets.base,
                    of_device(state, device),
                    scale=self.pieces.engine.train.scale,
                )
                found = evaluate(network.network, examples, chunk=chunk)
                weight = float(self.pieces.problem.devices.weight[device])
                accuracy = math.nan if found.accuracy is None else found.accuracy
                rows.append((weight, found.loss, accuracy))
        return _summary(np.array(rows))

    def _train(self, plan: RoundPlan, state: GlobalState, place: int) -> Outcome:
        row = plan.assignments.row(place)
        job = Job(row.device, row, self.pieces.assets.data.devices[row.device].train, 1.0)
        (outcome,) = train(
            self.pieces.assets.base,
            of_device(state, row.device),
            [job],
            settings=self.pieces.engine.train.at(plan.learning_rate),
            work=WorkSpec(),
            workload=self.pieces.problem.workload,
            seed=self.pieces.problem.seed,
            round=plan.round,
        )
        return outcome

    def _after(self, state: GlobalState, outcome: Outcome) -> GlobalState:
        """Return a device's state after its round; the one before where its update is refused."""
        before = of_device(state, outcome.device)
        if outcome.update is None:
            return before
        return replace(before, adapters=outcome.update.adapters, head=outcome.update.head)

    def _results(
        self, assignments: Assignments, outcomes: list[Outcome], *, flops: Floats, compute_s: Floats
    ) -> Results:
        problem, nothing = self.pieces.problem, np.zeros(len(assignments))
        return Results(
            device=assignments.device,
            status=np.array([outcome.status for outcome in outcomes]),
            download_s=nothing,
            compute_s=compute_s,
            upload_s=nothing,
            finish_s=compute_s,
            download_bytes=nothing,
            upload_bytes=nothing,
            flops=flops,
            loss_first=np.array([outcome.loss_first for outcome in outcomes]),
            loss_last=np.array([outcome.loss_last for outcome in outcomes]),
            samples=np.array([outcome.samples for outcome in outcomes]),
            peak_bytes=peak_memory(problem.shape, problem.workload, assignments).total,
            energy_j=energy_j(problem, assignments.device, compute_s=compute_s, upload_s=nothing),
            importance=np.full(len(assignments), np.nan),
        )


def of_device(state: GlobalState, device: int) -> GlobalState:
    """Return one device's state out of the common one."""
    prefix = f"{device}/"
    if not any(name.startswith(prefix) for name in state.adapters):
        return state
    adapters, head = (
        {
            name.removeprefix(prefix): tensor
            for name, tensor in group.items()
            if name.startswith(prefix)
        }
        for group in (state.adapters, state.head)
    )
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
