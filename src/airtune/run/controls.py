"""The plain controls of a comparison, which federate nothing, on the ordinary loop.

    untuned     the base as it is: a round in which nobody is there
    local-only  every device alone on its own data, the same steps, judged on its own share
    pooled      all data at the server, as many steps as the fleet makes together; needs central data

`local-only` and `pooled` cost no traffic; their time is the slowest device's, or the server's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from airtune.data import DeviceData, FederatedData
from airtune.engine.base import Engine
from airtune.engine.virtual import local_engine
from airtune.fleet import Fleet, load_fleet
from airtune.methods.memoryless import Memoryless
from airtune.plan import Method, Need, Observation, Problem, RoundPlan, State, WorkSpec, whole_model
from airtune.run.alone import AloneEngine
from airtune.run.build import Pieces
from airtune.run.no_traffic import NoTraffic
from airtune.work.batches import join_examples

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
        assignments = whole_model(
            device,
            rank=problem.workload.rank,
            local_steps=problem.workload.local_steps,
            share=np.full(len(device), 1.0 / max(len(device), 1)),
        )
        return RoundPlan(
            observation.round, assignments, ("control: the whole model",) * len(device)
        ), state


def control(name: str, pieces: Pieces) -> tuple[Method, Problem, Engine]:
    """Return the method, problem and engine of a control."""
    method, own = Method(name, WholeModel(), work=WorkSpec()), _federated(pieces)
    if name == "untuned":
        return method, replace(pieces.problem, rounds=1), NoTraffic(own, own, is_empty=True)
    if name == "local-only":
        return method, pieces.problem, AloneEngine(own, own, pieces=pieces)
    fleet = load_fleet(_server_as_fleet(pieces.assets.fleet), seed=pieces.problem.seed)
    data = pooled(pieces.assets.data)
    work = pieces.problem.workload
    problem = replace(
        pieces.problem,
        devices=fleet.profiles(np.array([len(data.devices[0].train)])),
        workload=replace(work, local_steps=work.local_steps * len(pieces.assets.fleet)),
        deadline_s=None,
    )
    server = local_engine(
        fleet,
        problem,
        pieces.assets.base,
        data,
        settings=replace(pieces.engine, participation=1.0, dropout=0.0),
    )
    return method, problem, NoTraffic(server, own)


def pooled(data: FederatedData) -> FederatedData:
    """Return the data as if one device held everything."""
    trained = [device.train for device in data.devices]
    held_out = [device.validation for device in data.devices]
    return replace(
        data,
        devices=(
            DeviceData(
                train=join_examples((part, range(len(part))) for part in trained),
                validation=join_examples((part, range(len(part))) for part in held_out),
            ),
        ),
    )


def _federated(pieces: Pieces) -> Engine:
    assets = pieces.assets
    return local_engine(
        assets.fleet, pieces.problem, assets.base, assets.data, settings=pieces.engine
    )


def _server_as_fleet(fleet: Fleet) -> dict[str, object]:
    return {
        "name": "server",
        "summary": "the edge server, with all data",
        "links": {"none": {"kind": "dedicated", "capacity": {"up_mbps": 1e6, "down_mbps": 1e6}}},
        "devices": [
            {
                "name": "server",
                "link": "none",
                "gflops_per_s": fleet.server.flops_per_s / 1e9,
                "memory_gib": fleet.server.memory_bytes / 2**30,
                "power_w": 1.0,
            }
        ],
    }
