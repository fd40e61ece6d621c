"""Devices in this process, reached through the same messages as real ones."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from airtune.deploy.agent.device import Device, DeviceSettings
from airtune.deploy.federation.orders import Order
from airtune.deploy.federation.run import run_federation
from airtune.engine.stream import StreamServer
from airtune.engine.virtual import local_engine
from airtune.errors import AirtuneError
from airtune.loop import Run, run_to_end
from airtune.recipe import Recipe, load_recipe
from airtune.records import RunRecord, RunWriter, read_run
from airtune.run import build_pieces, choose_method, problem_of, stored_measurements
from airtune.run.execute import loop_settings
from airtune.run.header import identity
from airtune.wire.message import Message, More, Response


class Mail:
    """Carries messages to devices in this process; a test may bend them on the way."""

    def __init__(self, devices: Mapping[int, Device]) -> None:
        self.devices = dict(devices)
        self.absent: set[int] = set()
        self.bend: Callable[[int, Message], Message] = lambda device, reply: reply
        self.sent: list[dict[int, Message]] = []
        self.after_s = 0.5

    def online(self) -> frozenset[int]:
        return frozenset(self.devices) - self.absent

    def send(
        self, messages: Mapping[int, Message], *, deadline_s: float, more: More | None = None
    ) -> Mapping[int, Response]:
        self.sent.append(dict(messages))
        # models cannot be loaded by several threads at once, so devices join one after the other
        is_training = any(b'"kind":"train"' in message.header for message in messages.values())
        with ThreadPoolExecutor(len(messages) if is_training else 1) as pool:
            arrived = pool.map(lambda item: self._carry(*item), messages.items())
            return dict(zip(messages, arrived, strict=True))

    def _carry(self, device: int, message: Message) -> Response:
        if device in self.absent:
            return Response(None, 0.0, "this device is not connected")
        try:
            return Response(self.bend(device, self.devices[device].handle(message)), self.after_s)
        except AirtuneError as error:
            return Response(None, 0.5, str(error))


class Nodes:
    """As many devices as wanted, connected to a server in this process."""

    def __init__(self, names: list[str], data: str = "recipe") -> None:
        self.names = names
        self.mail = Mail({})
        self._data = data

    def connected(self) -> Mapping[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def transport(self, locate: Callable[[], Mapping[int, int]]) -> Mail:
        settings = DeviceSettings(data=self._data, compute="cpu")
        fresh = {number: Device(settings) for number in locate()}
        self.mail.devices |= {number: made for number, made in fresh.items()
                              if number not in self.mail.devices}  # fmt: skip
        return self.mail


@pytest.fixture
def nodes() -> Callable[..., Nodes]:
    return Nodes


@pytest.fixture
def mail() -> Callable[..., Mail]:
    return Mail


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    def make(**changes: Any) -> Recipe:
        base = {
            "train.rounds": 2, "train.local_steps": 2, "train.per_device_train_batch_size": 2,
            "data.limit": 60, "data.test_limit": 10, "fleet.devices": 3, "threads": 1,
            "method.name": "fedavg-lora", "data.max_length": 48,
        }  # fmt: skip
        words = [f"{key}={value}" for key, value in (base | changes).items()]
        return load_recipe(None, overrides=words)

    return make


@pytest.fixture
def alone() -> Callable[[Recipe, Path], RunRecord]:
    """Runs a recipe in this process, each device trained alone as it is when it is elsewhere."""

    def run(recipe: Recipe, folder: Path) -> RunRecord:
        pieces, chosen = build_pieces(recipe), choose_method(recipe)
        method, assets = chosen.method, pieces.assets
        settings = replace(pieces.engine, train=replace(pieces.engine.train, pass_tokens=1))
        measured = stored_measurements(recipe, chosen, fingerprint=assets.base.fingerprint)
        problem = problem_of(pieces, method, measured)
        engine = local_engine(assets.fleet, problem, assets.base, assets.data, work=method.work,
                             needs=method.decider.needs, settings=settings)  # fmt: skip
        header = {"schema": 1, "name": "alone", "rounds": problem.rounds}
        going = Run(method, problem, engine, RunWriter.create(folder, header), identity(pieces),
                    loop_settings(pieces))  # fmt: skip
        run_to_end(going, assets.base)
        return read_run(folder)

    return run


@pytest.fixture
def replayed() -> Iterator[Callable[..., RunRecord]]:
    """Runs a recipe on the replayed clock, over three devices that are reached by messages."""
    server = StreamServer()

    def run(recipe: Recipe, folder: Path, *, may_serve: bool = True) -> RunRecord:
        nodes = Nodes(["a", "b", "c"])
        settings = DeviceSettings(data="recipe", compute="cpu", host="127.0.0.1")
        nodes.mail.devices |= {number: Device(settings) for number in range(3)}
        serve = (lambda: (server, f":{server.port}")) if may_serve else None
        order = Order(recipe, folder, devices=3, clock="replay", serve=serve)
        return read_run(run_federation(order, nodes, tell=lambda **event: None))

    yield run
    server.close()


@pytest.fixture
def weights() -> Callable[[RunRecord], Mapping[str, torch.Tensor]]:
    """Reads the adapters with which a run ended."""

    def read(record: RunRecord) -> Mapping[str, torch.Tensor]:
        name = f"round-{len(record.rounds):06d}"
        return load_file(record.folder / "checkpoint" / name / "tensors.safetensors")

    return read
