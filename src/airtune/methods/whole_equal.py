"""FedAvg-LoRA and FedProx: the whole model for everybody, links divided equally, nothing known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.methods.memoryless import Memoryless
from airtune.methods.seen import available, even_shares
from airtune.plan import Need, Observation, Problem, RoundPlan, State, whole_model


@dataclass(frozen=True, slots=True)
class WholeEqual(Memoryless):
    """The decider of federated averaging: no pruning, equal shares, no needs.

    Source: FedIT (arXiv 2305.05644): federated averaging of LoRA factors.
    """

    needs: frozenset[Need] = frozenset()

    def plan(
        self, problem: Problem, state: State, observation: Observation
    ) -> tuple[RoundPlan, State]:
        """Tell every available device to train the whole model on an equal share."""
        device = available(observation)
        devices = problem.devices
        alone = None if devices.dedicated is None else devices.dedicated[device]
        share = even_shares(devices.link[device], alone)
        assignments = whole_model(
            device,
            rank=problem.workload.rank,
            local_steps=problem.workload.local_steps,
            share=share,
        )
        crowd = np.rint(1.0 / np.maximum(share, 1e-12)).astype(np.int64)
        reasons = tuple(
            f"{devices.names[index]}: trains the whole model; "
            + ("has its link to itself" if count == 1 else f"1 of {count} equal shares of its link")
            for index, count in zip(device, crowd, strict=True)
        )
        return RoundPlan(
            observation.round,
            assignments,
            reasons,
            deadline_s=problem.deadline_s,
            notes={"mean_pruned": 0.0},
        ), state
