"""A small federation: fleet, data, base, problem and a plan that gives equal shares; streams."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from airtune.data.federated import DeviceData, FederatedData
from airtune.engine.base import EngineSettings
from airtune.engine.virtual import VirtualEngine, local_engine
from airtune.errors import CodecError, TrainingError
from airtune.fleet import Fleet, load_fleet
from airtune.model.base import BaseModel, base_of
from airtune.model.batch import Sequences
from airtune.model.state import GlobalState, initial_state
from airtune.plan import Assignment, Assignments, CodecSpec, Problem, RoundPlan, Workload, WorkSpec
from airtune.split import (
    CutMemory,
    DeviceEnd,
    DevicePart,
    SplitJob,
    SplitResult,
    join_round,
    split_round,
)
from airtune.work.jobs import Outcome, TrainSettings

VOCAB = 61


@pytest.fixture(scope="session")
def base() -> BaseModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
        return base_of(LlamaForCausalLM(config))


def _sequences(seed: int, count: int) -> Sequences:
    draw = np.random.default_rng(seed)
    tokens = tuple(draw.integers(3, VOCAB, draw.integers(6, 13)) for _ in range(count))
    return Sequences(tokens, tokens)


@pytest.fixture(scope="session")
def data() -> FederatedData:
    devices = tuple(
        DeviceData(_sequences(device, 4 + device), _sequences(100 + device, 2))
        for device in range(6)
    )
    return FederatedData(devices, _sequences(200, 5), (), {}, {})


@pytest.fixture
def cell() -> dict[str, Any]:
    """Six unlike devices on one cell that fades every 50 ms; a test may change it."""
    radio = {
        "up_bandwidth_mhz": 0.02,
        "down_bandwidth_mhz": 0.2,
        "fading": {"model": "rayleigh", "every": "slot"},
    }
    return {
        "name": "test",
        "links": {"cell": {"kind": "shared", "slot_s": 0.05, "radio": radio}},
        "devices": [
            {"name": "dev", "count": 6, "gflops_per_s": [0.01, 0.05], "memory_gib": 1, "power_w": 5}
        ],
    }


@pytest.fixture(scope="session")
def problem_of(base: BaseModel, data: FederatedData) -> Callable[..., Problem]:
    def make(fleet: Fleet, **changes: Any) -> Problem:
        workload = Workload(
            batch=2,
            tokens=12,
            local_steps=2,
            rank=4,
            lora_targets=tuple(linear.name for linear in base.shape.linears),
        )
        samples = np.array([len(device.train) for device in data.devices])
        choices: dict[str, Any] = {
            "shape": base.shape,
            "devices": fleet.profiles(samples),
            "workload": workload,
            "rounds": 4,
            "seed": 3,
        }
        return Problem(**(choices | changes))

    return make


@pytest.fixture
def engine_of(
    base: BaseModel, data: FederatedData, cell: dict[str, Any], problem_of: Callable[..., Problem]
) -> Callable[..., VirtualEngine]:
    """Build an engine on the cell: settings by keyword, `problem` and `engine` as dicts."""

    def make(*, problem: dict | None = None, engine: dict | None = None, **settings: Any):
        fleet = load_fleet(cell, seed=1)
        return local_engine(
            fleet,
            problem_of(fleet, **(problem or {})),
            base,
            data,
            settings=EngineSettings(**settings),
            **(engine or {}),
        )

    return make


@pytest.fixture(scope="session")
def plan_of() -> Callable[..., RoundPlan]:
    """Build a plan: devices, pruning ratio of each, deadline."""

    def make(devices: int = 6, *, prune: float = 0.0, round: int = 0, **changes: Any) -> RoundPlan:
        device = np.arange(devices)
        ratio, zeros = np.full(devices, prune), np.zeros(devices, np.int64)
        assignments = Assignments(
            device=device,
            prune_heads=ratio,
            prune_ffn=ratio,
            rank=np.full(devices, 4),
            share=np.full(devices, 1 / devices),
            local_steps=np.full(devices, 2),
            cut=zeros,
            codec_index=zeros,
        )
        reasons = tuple(f"device {index}" for index in range(devices))
        return RoundPlan(round, assignments, reasons, **changes)

    return make


@pytest.fixture(scope="session")
def keep() -> Callable[..., Callable]:
    """Make a `divide` that keeps a plan's shares."""
    return lambda plan: lambda links, remaining: plan.assignments.share


@dataclass(frozen=True)
class Streams:
    """Split rounds over streams on this machine, beside those of one process."""

    base: BaseModel
    server: Any
    workload: Workload

    def job(
        self, device: int, cut: int, *, codec: CodecSpec | None = None, steps: int = 3
    ) -> SplitJob:
        """Return a device with four texts of its own."""
        draw = np.random.default_rng(device)
        rows = tuple(draw.integers(3, VOCAB, draw.integers(5, 15)) for _ in range(4))
        row = Assignment(device, 0.0, 0.0, 4, cut, 1.0, steps, codec or CodecSpec())
        return SplitJob(device, row, Sequences(rows, rows), 1.0 + device)

    def task(
        self,
        jobs: Sequence[SplitJob],
        work: WorkSpec,
        *,
        round: int = 0,
        run: str = "a run",
        state: GlobalState | None = None,
        **timing: float,
    ) -> Any:
        """Return a round that waits for all; `timing` changes that."""
        from airtune.engine.stream import SplitTask, StreamTiming

        waits = {"window_s": float("inf"), "rejoin_s": 0.5, "deadline_s": 60.0}
        return SplitTask(
            run,
            round,
            self.base,
            state or initial_state(self.base, self.workload, 0),
            tuple(j.row for j in jobs),
            tuple(j.weight for j in jobs),
            TrainSettings(learning_rate=1e-2),
            work,
            self.workload,
            0,
            StreamTiming(**waits | timing),
            tuple(len(j.data) for j in jobs),
        )

    def go(
        self,
        task: Any,
        jobs: Sequence[SplitJob],
        *,
        kinds: Mapping[int, Any] | None = None,
        after_s: Mapping[int, float] | None = None,
        memory: Mapping[int, Any] | None = None,
    ) -> tuple[Any, dict[int, Any]]:
        """Run devices in threads; return the server's round and each device's, or its error.

        By device: what stands in for `DeviceEnd`, how late it comes, and what it remembers.
        """
        from airtune.engine.stream import Connection, Way, run_device

        opened, parts = self.server.open(task), {}

        def run(one: SplitJob) -> None:
            time.sleep((after_s or {}).get(one.device, 0.0))
            end = (kinds or {}).get(one.device, DeviceEnd)(
                task.context, {0: one}, memory={0: (memory or {}).get(one.device, {})}
            )
            target, token = f"127.0.0.1:{self.server.port}", opened.tokens[one.device]
            try:
                parts[one.device] = run_device(
                    end, Connection(Way(target), token, task.run, deadline_s=30.0)
                )
            except (TrainingError, CodecError) as error:
                parts[one.device] = error

        threads = [threading.Thread(target=run, args=(one,)) for one in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return opened.wait(60), parts

    def joined(self, task: Any, result: Any, parts: Mapping[int, Any]) -> tuple[Outcome, ...]:
        """Return what a round has given of each device."""
        places = {row.device: place for place, row in enumerate(task.rows)}
        return join_round(
            task.context,
            task.rows,
            result.parts,
            result.log,
            {
                places[device]: DevicePart(part.adapters, part.head, part.steps)
                for device, part in parts.items()
                if not isinstance(part, Exception)
            },
        )

    def alone(
        self,
        task: Any,
        jobs: Sequence[SplitJob],
        *,
        memory: CutMemory | None = None,
        drops: Mapping[int, int] | None = None,
    ) -> SplitResult:
        """Return the same round in this process."""
        return split_round(
            task.base,
            task.state,
            jobs,
            settings=task.settings,
            work=task.work,
            workload=task.workload,
            seed=0,
            round=task.round,
            memory=memory,
            drops=drops,
        )

    def assert_same_updates(self, ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> None:
        """Hold what devices have given against a reference."""
        for one, other in zip(ours, theirs, strict=True):
            assert (one.status, other.status) == ("ok", "ok"), one.reason
            assert one.update is not None
            assert other.update is not None
            _close(one.update.adapters, other.update.adapters)
            _close(one.update.head, other.update.head)

    def assert_same(
        self, task: Any, result: Any, parts: Mapping[int, Any], reference: SplitResult
    ) -> None:
        """Hold a round over streams against one in this process, device by device."""
        self.assert_same_updates(self.joined(task, result, parts), reference.outcomes)
        _close(result.adapters, reference.server)
        np.testing.assert_allclose(result.log.losses, reference.losses, rtol=1e-4)
        np.testing.assert_allclose(result.log.up_bytes, reference.up_bytes, rtol=0.02)
        np.testing.assert_allclose(result.log.down_bytes, reference.down_bytes, rtol=0.02)
        for place, row in enumerate(task.rows):
            np.testing.assert_array_equal(parts[row.device].up_bytes, result.log.up_bytes[:, place])
            np.testing.assert_array_equal(
                parts[row.device].down_bytes, result.log.down_bytes[:, place]
            )
            assert parts[row.device].listed_bytes == result.listed_bytes[place]
        np.testing.assert_allclose(result.log.computed, reference.ledger.computed)


def _close(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="session")
def streams() -> Iterator[Streams]:
    """Four blocks and a server of streams."""
    pytest.importorskip("grpc", reason="grpcio is not installed: pip install 'airtune[federation]'")
    from airtune.engine.stream import StreamServer

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
        base = base_of(LlamaForCausalLM(config))
    workload = Workload(
        batch=2, tokens=16, local_steps=3, rank=4, lora_targets=("q_proj", "v_proj")
    )
    serving = StreamServer()
    yield Streams(base, serving, workload)
    serving.close()
