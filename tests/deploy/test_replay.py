"""The same seed, with the devices in this process or behind messages: the same run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from airtune.deploy.agent.device import Device, DeviceSettings
from airtune.deploy.reading import describe_reader
from airtune.engine.message import RunSetup
from airtune.engine.remote.devices import Remote
from airtune.engine.remote.workers import RemoteWorkers
from airtune.engine.virtual import VirtualEngine, local_engine
from airtune.loop import Run, begin, run_rounds
from airtune.methods.whole_equal import WholeEqual
from airtune.model.state import initial_state
from airtune.plan import CodecSpec
from airtune.records import RunWriter, read_run
from airtune.run import build_pieces, choose_method
from airtune.run.execute import loop_settings


def _settings(pieces):
    """A device is trained alone in its pass, as it is when it is elsewhere."""
    return replace(pieces.engine, train=replace(pieces.engine.train, pass_tokens=1))


def _local(pieces, method, problem):
    assets = pieces.assets
    return local_engine(assets.fleet, problem, assets.base, assets.data, work=method.work,
                       needs=method.decider.needs, settings=_settings(pieces))  # fmt: skip


def _remote(pieces, method, problem, mail):
    assets, recipe = pieces.assets, pieces.recipe
    count = len(assets.fleet)
    setup = RunSetup(
        recipe=recipe.model_dump_json(), fingerprint=assets.base.fingerprint,
        tokenizer=describe_reader(recipe, assets.base.tokenizer), workload=problem.workload,
        work=method.work, train=_settings(pieces).train, seed=problem.seed, devices=count,
        labels=assets.data.labels, threads=1,
    )  # fmt: skip
    devices = {
        number: Device(DeviceSettings(data="recipe", compute="cpu")) for number in range(count)
    }
    remote = Remote(mail(devices), assets.fleet.names, setup, run=7, shape=assets.base.shape)
    workers = RemoteWorkers(
        assets.fleet,
        problem,
        assets.base,
        assets.data,
        remote=remote,
        work=method.work,
        settings=_settings(pieces),
    )
    needs, settings = method.decider.needs, _settings(pieces)
    return VirtualEngine(assets.fleet, workers, needs=needs, settings=settings)


def _play(pieces, method, problem, engine, folder: Path) -> tuple[Any, Any]:
    writer = RunWriter.create(folder, {"schema": 1, "name": "x", "rounds": problem.rounds})
    run = Run(method, problem, engine, writer, "identity", loop_settings(pieces))
    try:
        state = initial_state(pieces.assets.base, problem.workload, problem.seed)
        done = run_rounds(run, begin(run, state))
    finally:
        engine.close()
    return read_run(folder), done.state


class _Alternating(WholeEqual):
    """Devices that code their updates in turn by one codec and by another."""

    def plan(self, problem, state, observation):
        plan, state = super().plan(problem, state, observation)
        menu = (CodecSpec("topk", keep=0.1, bits=4), CodecSpec(), CodecSpec("fp16"))
        specs = [menu[(place + plan.round) % 3] for place in range(len(plan.assignments))]
        told = plan.assignments.coded_as(specs, CodecSpec())
        return replace(plan, assignments=told), state


def test_codecs_that_change_hands_are_replayed_with_what_they_owe(recipe, mail, tmp_path):
    pieces = build_pieces(recipe(**{"method.name": "fedavg-lora", "upload.feedback": "true"}))
    method = replace(choose_method(pieces.recipe).method, decider=_Alternating())
    problem = replace(pieces.problem, work=method.work)
    here, state_here = _play(
        pieces, method, problem, _local(pieces, method, problem), tmp_path / "a"
    )
    there, state_there = _play(
        pieces, method, problem, _remote(pieces, method, problem, mail), tmp_path / "b"
    )
    assert len(set(here.devices["upload_codec"])) == 3
    for name, column in here.devices.items():
        np.testing.assert_array_equal(column, there.devices[name], err_msg=name)
    for name, tensor in state_here.adapters.items():
        assert torch.equal(tensor, state_there.adapters[name])


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"method.name": "jcpba", "method.budget": 0.25, "download.kind": "topk",
                      "download.keep": 1.0, "download.bits": 8}, marks=pytest.mark.slow),
        pytest.param({"method.name": "fedspine"}, marks=pytest.mark.slow),
        {"method.name": "fedavg-lora", "upload.kind": "topk", "upload.keep": 0.1,
         "upload.bits": 8, "upload.feedback": "true", "download.kind": "fp16",
         "train.decay": 0.5, "train.server_average": 0.9, "train.server_momentum": 0.5},
    ],
    ids=["jcpba", "fedspine", "coded"],
)  # fmt: skip
def test_same_plans_payloads_and_losses(
    changes: dict[str, Any], recipe: Callable[..., Any], mail: Any, tmp_path: Path
) -> None:
    pieces = build_pieces(recipe(**changes))
    method = choose_method(pieces.recipe).method
    problem = replace(pieces.problem, work=method.work)
    here, state_here = _play(
        pieces, method, problem, _local(pieces, method, problem), tmp_path / "a"
    )
    there, state_there = _play(
        pieces, method, problem, _remote(pieces, method, problem, mail), tmp_path / "b"
    )
    for name, column in here.devices.items():
        np.testing.assert_array_equal(column, there.devices[name], err_msg=name)
    for one, other in zip(here.rounds, there.rounds, strict=True):
        assert one["train_loss"] == other["train_loss"]
        assert one["upload_bytes"] == other["upload_bytes"]
        assert one["validation"]["loss"] == pytest.approx(other["validation"]["loss"], abs=1e-6)
    for name, tensor in state_here.adapters.items():
        assert torch.equal(tensor, state_there.adapters[name])
