"""Tiny random networks of every family, and data for them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    SmolLM3Config,
)

from airtune.model.base import BaseModel, base_of
from airtune.model.batch import IGNORED, Batch
from airtune.model.families import FAMILIES
from airtune.model.kept import Kept
from airtune.plan import ModelShape, Workload

_DECODER = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_ENCODER = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_CONFIGS = {
    "llama": lambda: LlamaConfig(**_DECODER, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**_DECODER, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**_DECODER),
    "qwen3": lambda: Qwen3Config(**_DECODER, head_dim=16),
    "gpt2": lambda: GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "bert": lambda: BertConfig(**_ENCODER),
    "roberta": lambda: RobertaConfig(**_ENCODER),
    "gemma3_text": lambda: Gemma3TextConfig(
        **_DECODER,
        head_dim=16,
        sliding_window=4,
        query_pre_attn_scalar=16,
        pad_token_id=0,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "smollm3": lambda: SmolLM3Config(**_DECODER, pad_token_id=0, no_rope_layers=[1, 0, 1]),
    "phi3": lambda: Phi3Config(**_DECODER, pad_token_id=0),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=61, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=64
    ),
    "modernbert": lambda: ModernBertConfig(
        **_ENCODER,
        pad_token_id=0,
        local_attention=6,
        layer_types=["sliding_attention", "full_attention"],
    ),
}

Make = Callable[..., BaseModel]


@pytest.fixture(params=sorted(FAMILIES.keys() - {"vit"}))
def family_name(request: pytest.FixtureRequest) -> str:
    """Every family that reads text: the contract suite runs on each; see `test_images` for ViT."""
    return request.param


@pytest.fixture(scope="session")
def make_base() -> Make:
    """Build a tiny random base: name, labels (encoders get 3), config overrides."""

    def make(name: str, *, labels: int = 0, **overrides: object) -> BaseModel:
        config = _CONFIGS[name]()
        for key, value in overrides.items():
            setattr(config, key, value)
        labels = labels or (0 if FAMILIES[name].causal else 3)
        if labels:
            config.num_labels = labels
        auto = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = auto.from_config(config)
            for parameter in network.parameters():  # nothing may be zero or one by chance
                parameter.data += 0.1 * torch.randn_like(parameter)
        return base_of(network)

    return make


@pytest.fixture
def base(make_base: Make, family_name: str) -> BaseModel:
    """A tiny base of every family."""
    return make_base(family_name)


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """Build a right-padded batch for a base: rows, tokens, seed."""

    def make(base: BaseModel, *, rows: int = 4, tokens: int = 9, seed: int = 0) -> Batch:
        draw = np.random.default_rng(seed)
        ids = torch.from_numpy(draw.integers(3, 60, (rows, tokens)))
        mask = torch.ones_like(ids)
        for row in range(1, rows):
            mask[row, tokens - row % 3 :] = 0
        if base.shape.task == "classification":
            labels = torch.from_numpy(draw.integers(0, base.shape.labels, rows))
        else:
            labels = ids.masked_fill(mask == 0, IGNORED)
            labels[:, :2] = IGNORED
        return Batch(ids, mask, labels)

    return make


@pytest.fixture(scope="session")
def workload_of() -> Callable[..., Workload]:
    """A workload whose adapters sit on every linear layer of a shape."""

    def make(shape: ModelShape, *, rank: int = 4, targets: tuple[str, ...] = ()) -> Workload:
        names = targets or tuple(linear.name for linear in shape.linears)
        return Workload(
            batch=2,
            tokens=9,
            local_steps=1,
            rank=rank,
            lora_targets=names,
            trains_head=shape.labels > 0,
        )

    return make


@pytest.fixture(scope="session")
def uneven_kept() -> Callable[[ModelShape], Kept]:
    """A slice whose counts differ from block to block."""

    def make(shape: ModelShape) -> Kept:
        groups = tuple(
            np.arange(shape.kv_groups)[block % 2 :: 1 + block % 2] for block in range(shape.blocks)
        )
        channels = tuple(np.arange(shape.ffn)[block :: 2 + block] for block in range(shape.blocks))
        return Kept(groups, channels)

    return make
