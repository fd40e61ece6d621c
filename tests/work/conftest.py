"""A tiny language model, a tiny classifier and data of unlike devices."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from airtune.model.base import BaseModel, base_of
from airtune.model.batch import IGNORED, Sequences
from airtune.model.state import GlobalState, initial_state
from airtune.plan import Assignment, CodecSpec, Workload
from airtune.work.importance import measure_importance
from airtune.work.jobs import Job

VOCAB = 61


def _base(kind: type, config: object) -> BaseModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = kind(config)
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return base_of(network)


SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="session")
def base() -> BaseModel:
    return _base(LlamaForCausalLM, LlamaConfig(**SIZES))


@pytest.fixture(scope="session")
def without_switch() -> BaseModel:
    """A family whose config has no bias switch."""
    return _base(Qwen2ForCausalLM, Qwen2Config(**SIZES))


@pytest.fixture(scope="session")
def classifier() -> BaseModel:
    return _base(
        BertForSequenceClassification,
        BertConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            num_labels=3,
        ),
    )


@pytest.fixture(scope="session")
def workload_of() -> Callable[..., Workload]:
    def make(base: BaseModel, **changes: object) -> Workload:
        choices = {
            "batch": 2,
            "tokens": 16,
            "local_steps": 3,
            "rank": 4,
            "lora_targets": tuple(linear.name for linear in base.shape.linears),
            "trains_head": base.shape.labels > 0,
        }
        return Workload(**(choices | changes))

    return make


@pytest.fixture(scope="session")
def sequences_of() -> Callable[..., Sequences]:
    def make(base: BaseModel, *, count: int = 6, seed: int = 0, longest: int = 14) -> Sequences:
        draw = np.random.default_rng(seed)
        tokens = tuple(draw.integers(3, VOCAB, draw.integers(5, longest + 1)) for _ in range(count))
        if base.shape.labels:
            return Sequences(tokens, draw.integers(0, base.shape.labels, count))
        targets = tuple(row.copy() for row in tokens)
        for target in targets:
            target[:2] = IGNORED
        return Sequences(tokens, targets)

    return make


@pytest.fixture(scope="session")
def job_of(sequences_of) -> Callable[..., Job]:
    """A device's job: pruning ratio, rank, steps; its data follow from its number."""

    def make(
        base: BaseModel, device: int, *, prune: float = 0.0, rank: int = 4, steps: int = 3
    ) -> Job:
        row = Assignment(device, prune, prune, rank, 0, 1.0, steps, CodecSpec())
        return Job(device, row, sequences_of(base, seed=device), 1.0)

    return make


@pytest.fixture(scope="session")
def state_of(workload_of, sequences_of) -> Callable[..., GlobalState]:
    """A state whose adapters are not zero, with measured importance."""

    def make(base: BaseModel) -> GlobalState:
        state = initial_state(base, workload_of(base), 0)
        stream = torch.Generator().manual_seed(1)
        adapters = {
            name: tensor + 0.05 * torch.randn(tensor.shape, generator=stream)
            for name, tensor in state.adapters.items()
        }
        importance = measure_importance(base, sequences_of(base), batch=2)
        return GlobalState(0, adapters, state.head, importance)

    return make
