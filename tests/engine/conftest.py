"""A small federation: fleet, data, base, problem and a plan that gives equal shares."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from airtune.data.federated import DeviceData, FederatedData
from airtune.engine.local import LocalEngine, LocalSettings
from airtune.fleet import Fleet, load_fleet
from airtune.model.base import BaseModel, base_of
from airtune.model.batch import Sequences
from airtune.plan import Assignments, Problem, RoundPlan, Workload

VOCAB = 61


@pytest.fixture(scope="session")
def base() -> BaseModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        )  # fmt: skip
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
            {
                "name": "dev",
                "count": 6,
                "gflops_per_s": [0.01, 0.05],
                "memory_gib": 1,
                "power_w": 5,
            }
        ],
    }


@pytest.fixture(scope="session")
def problem_of(base: BaseModel, data: FederatedData) -> Callable[..., Problem]:
    def make(fleet: Fleet, **changes: Any) -> Problem:
        workload = Workload(
            batch=2, tokens=12, local_steps=2, rank=4,
            lora_targets=tuple(linear.name for linear in base.shape.linears),
        )  # fmt: skip
        samples = np.array([len(device.train) for device in data.devices])
        choices: dict[str, Any] = {
            "shape": base.shape, "devices": fleet.profiles(samples), "workload": workload,
            "rounds": 4, "seed": 3,
        }  # fmt: skip
        return Problem(**(choices | changes))

    return make


@pytest.fixture
def engine_of(
    base: BaseModel, data: FederatedData, cell: dict[str, Any], problem_of: Callable[..., Problem]
) -> Callable[..., LocalEngine]:
    """Build an engine on the cell: settings by keyword, `problem` and `engine` as dicts."""

    def make(*, problem: dict | None = None, engine: dict | None = None, **settings: Any):
        fleet = load_fleet(cell, seed=1)
        return LocalEngine(
            fleet, problem_of(fleet, **(problem or {})), base, data,
            settings=LocalSettings(**settings), **(engine or {}),
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def plan_of() -> Callable[..., RoundPlan]:
    """Build a plan: devices, pruning ratio of each, deadline."""

    def make(devices: int = 6, *, prune: float = 0.0, round: int = 0, **changes: Any) -> RoundPlan:
        device = np.arange(devices)
        ratio, zeros = np.full(devices, prune), np.zeros(devices, np.int64)
        assignments = Assignments(
            device=device, prune_heads=ratio, prune_ffn=ratio, rank=np.full(devices, 4),
            share=np.full(devices, 1 / devices), local_steps=np.full(devices, 2), cut=zeros,
            codec_index=zeros,
        )  # fmt: skip
        reasons = tuple(f"device {index}" for index in range(devices))
        return RoundPlan(round, assignments, reasons, **changes)

    return make


@pytest.fixture(scope="session")
def keep() -> Callable[..., Callable]:
    """Make a `divide` that keeps a plan's shares."""
    return lambda plan: lambda links, remaining: plan.assignments.share
