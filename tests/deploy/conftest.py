"""Devices in this process, reached by the messages of real ones; and real ones, with a server."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.deploy.ports import free_port

from airtune.calibrate import store
from airtune.deploy.agent.device import Device, DeviceSettings
from airtune.deploy.federation.orders import Order
from airtune.deploy.federation.run import run_federation
from airtune.engine.stream import StreamServer
from airtune.engine.virtual import local_engine
from airtune.errors import AirtuneError
from airtune.loop import Run, run_to_end
from airtune.plan import CodecSpec, Measurements
from airtune.plan.rounds_tables import (
    CodecRounds,
    PrunedRounds,
    RankRounds,
    StepRounds,
    UploadRounds,
)
from airtune.recipe import Recipe, load_recipe
from airtune.records import RunRecord, RunWriter, read_run
from airtune.run import build_pieces, choose_method, problem_of, stored_measurements
from airtune.run.execute import loop_settings
from airtune.run.header import identity
from airtune.run.measurement import table_path, tables_of
from airtune.wire.message import Message, More, Response

LONG_S = 1800
AIRTUNE = (sys.executable, "-m", "airtune")


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
        self.mail.devices |= {
            number: made for number, made in fresh.items() if number not in self.mail.devices
        }
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
            "train.rounds": 2,
            "train.local_steps": 2,
            "train.per_device_train_batch_size": 2,
            "data.limit": 60,
            "data.test_limit": 10,
            "fleet.devices": 3,
            "threads": 1,
            "method.name": "fedavg-lora",
            "data.max_length": 48,
        }
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
        engine = local_engine(
            assets.fleet,
            problem,
            assets.base,
            assets.data,
            work=method.work,
            needs=method.decider.needs,
            settings=settings,
        )
        header = {"schema": 1, "name": "alone", "rounds": problem.rounds}
        going = Run(
            method,
            problem,
            engine,
            RunWriter.create(folder, header),
            identity(pieces),
            loop_settings(pieces),
        )
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


def _link(up_mbps: float) -> dict[str, Any]:
    return {"kind": "dedicated", "capacity": {"up_mbps": up_mbps, "down_mbps": 50}}


MIXED = {
    "name": "mixed",
    "server": {"gflops_per_s": 20, "memory_gib": 0.008},
    "links": {"slow": _link(1), "fair": _link(4), "fast": _link(50)},
    "devices": [
        {"name": "far", "link": "slow", "gflops_per_s": 20, "memory_gib": 1, "power_w": 5},
        {"name": "small", "link": "fair", "gflops_per_s": 5, "memory_gib": 0.004, "power_w": 5},
        {"name": "strong", "link": "fast", "gflops_per_s": 20, "memory_gib": 1, "power_w": 5},
    ],
}


@pytest.fixture
def mixed(recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """Makes a recipe of `auto` in whose rounds one device is cut and the others train all blocks.

    The small one's memory holds the first block and no slice that it may be told, the server's the
    rest of the model for one device. What the knobs cost is stored, such that each is worth having on
    some device; being cut costs `cut`.
    """

    def make(output: Path, *, cut: float, **changes: Any) -> Recipe:
        knobs = "[prune, rank, upload, cut, codec, share, steps]"
        asked = {
            "method.name": "auto",
            "method.knobs": knobs,
            "method.max_prune": 0.3,
            "fleet.source": json.dumps(MIXED),
            "output": str(output),
        }
        made = recipe(**(asked | changes))
        chosen, base = choose_method(made), build_pieces(made).assets.base
        coded, cuts = CodecSpec("topk", keep=0.1, bits=4), range(1, base.shape.blocks)
        costs = Measurements(
            base.fingerprint,
            "assumed",
            cut=cut,
            pruning=(PrunedRounds(0.0, 0.0), PrunedRounds(0.15, 0.02), PrunedRounds(0.3, 0.5)),
            ranks=(RankRounds(2, 0.6), RankRounds(4, 0.05), RankRounds(8, 0.0)),
            codecs=tuple(CodecRounds(cut, CodecSpec("deadzone"), 0.02) for cut in cuts),
            uploads=(UploadRounds(CodecSpec(), 0.0), UploadRounds(coded, 0.4)),
            steps=(StepRounds(1, 0.3), StepRounds(2, 0.0), StepRounds(4, -0.5)),
        )
        for table in tables_of(chosen):
            store(table_path(made, chosen, table), costs)
        return made

    return make


class Site:
    """A folder with a server and its devices, real processes with TLS and keys."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port(neighbours=1)  # the next one is where devices enrol
        self.folder = folder
        self.agents: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def state(self) -> Path:
        return self.folder / "airtune-server"

    def airtune(self, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        with self.begin(*words, cwd=cwd) as begun:
            out, error = begun.communicate(timeout=LONG_S)
        return subprocess.CompletedProcess(words, begun.returncode, out, error)

    def begin(self, *words: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*AIRTUNE, *words],
            cwd=cwd or self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )

    def start_agent(self, name: str, *words: str, home: Path | None = None) -> None:
        """Start a device's agent, in the folder of its bundle unless another is its home."""
        home = home or self.state / "bundles" / name
        home.mkdir(exist_ok=True)
        with (home / "agent.log").open("ab") as log:
            self.agents[name] = subprocess.Popen(
                [*AIRTUNE, "agent", "--server", self.address, "--data", "recipe", *words],
                cwd=home,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(),
                start_new_session=True,
            )

    def said(self) -> str:
        logs = self.folder.rglob("*.log")
        return "\n".join(f"== {path}\n{path.read_text(errors='replace')[-3000:]}" for path in logs)

    def close(self) -> None:
        for agent in self.agents.values():
            agent.terminate()
        for agent in self.agents.values():
            agent.wait(120)
        self.airtune("server", "stop")


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture(scope="session")
def open_site() -> Callable[..., AbstractContextManager[Site]]:
    """Starts a server in a folder, and an agent for each name."""

    @contextmanager
    def opened(folder: Path, *names: str) -> Iterator[Site]:
        made = Site(folder)
        try:
            added = made.airtune("device", "add", *names, "--json")
            assert added.returncode == 0, added.stdout + added.stderr
            started = made.airtune("server", "start", "--port", str(made.port), "--detach")
            assert started.returncode == 0, started.stdout + started.stderr + made.said()
            for name in names:
                made.start_agent(name)
            yield made
        finally:
            made.close()

    return opened


def run_with(recipe: Any, nodes: Any, root: Path, **order: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Run a recipe on devices in this process; returns the record, and what was told."""
    told: list[dict[str, Any]] = []
    folder = run_federation(
        Order(recipe, root, **({"devices": len(nodes.names)} | order)),
        nodes,
        tell=lambda **event: told.append(event),
    )
    return read_run(folder), told
