"""Tiny models of every family beside the shapes that describe them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import settings
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma3TextForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    MistralForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    Phi3Config,
    Phi3ForCausalLM,
    Phi3ForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from airtune.cost import bert_like, gpt2_like, llama_like, modernbert_like
from airtune.plan import Assignments, ModelShape, Workload

# a property's time depends on the machine's other work
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

LABELS = 3
DECODER = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "vocab_size": 100,
}  # fmt: skip
ENCODER = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "vocab_size": 100, "max_position_embeddings": 70,
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """A real architecture and what our constructor says of it."""

    kind: type[PreTrainedModel]
    config: PreTrainedConfig
    shape: ModelShape

    def build(self, attention: str = "eager") -> PreTrainedModel:
        torch.manual_seed(0)
        self.config._attn_implementation = attention
        return self.kind(self.config).eval()


def _llama(family: str, *, head_dim: int = 8, tied: bool = False, labels: int = 0, **other: bool):
    return llama_like(
        family,
        blocks=3,
        width=48,
        heads=6,
        kv_groups=2,
        head_dim=head_dim,
        ffn=80,
        vocab=100,
        tied=tied,
        labels=labels,
        **other,
    )


def _gpt2(*, tied: bool = True, labels: int = 0) -> ModelShape:
    return gpt2_like(
        blocks=3, width=48, heads=6, ffn=192, vocab=100, positions=64, tied=tied, labels=labels
    )


def _bert(family: str, types: int) -> ModelShape:
    return bert_like(
        family,
        blocks=3,
        width=48,
        heads=6,
        ffn=80,
        vocab=100,
        positions=70,
        types=types,
        labels=LABELS,
    )


def _modernbert(**biases: bool) -> ModelShape:
    return modernbert_like(blocks=3, width=48, heads=6, ffn=80, vocab=100, labels=LABELS, **biases)


def samples() -> dict[str, Sample]:
    """Every family as a language model and as a classifier, with its biases and ties."""
    untied, tied = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}
    classes = {"num_labels": LABELS, "pad_token_id": 0}
    biases = {"attention_bias": True, "mlp_bias": True}
    qwen3 = {**DECODER, "head_dim": 16}
    gemma = {**DECODER, "head_dim": 16, "sliding_window": 8, "pad_token_id": 0}
    gpt2 = {"n_embd": 48, "n_layer": 3, "n_head": 6, "vocab_size": 100, "n_positions": 64}
    all_biases = {"qkv_bias": True, "output_bias": True, "mlp_bias": True}
    return {
        "llama": Sample(LlamaForCausalLM, LlamaConfig(**DECODER, **untied), _llama("llama")),
        "llama tied": Sample(
            LlamaForCausalLM, LlamaConfig(**DECODER, **tied), _llama("llama", tied=True)
        ),
        "llama biases": Sample(
            LlamaForCausalLM, LlamaConfig(**DECODER, **biases), _llama("llama", **all_biases)
        ),
        "llama classes": Sample(
            LlamaForSequenceClassification,
            LlamaConfig(**DECODER, **classes),
            _llama("llama", labels=LABELS),
        ),
        "mistral": Sample(
            MistralForCausalLM,
            MistralConfig(**DECODER, head_dim=16, **untied),
            _llama("mistral", head_dim=16),
        ),
        "mistral classes": Sample(
            MistralForSequenceClassification,
            MistralConfig(**DECODER, **classes),
            _llama("mistral", labels=LABELS),
        ),
        "qwen2": Sample(
            Qwen2ForCausalLM,
            Qwen2Config(**DECODER, **tied),
            _llama("qwen2", tied=True, qkv_bias=True),
        ),
        "qwen2 classes": Sample(
            Qwen2ForSequenceClassification,
            Qwen2Config(**DECODER, **classes),
            _llama("qwen2", labels=LABELS, qkv_bias=True),
        ),
        "qwen3": Sample(
            Qwen3ForCausalLM,
            Qwen3Config(**qwen3, **tied),
            _llama("qwen3", head_dim=16, tied=True, qk_norm=True),
        ),
        "qwen3 classes": Sample(
            Qwen3ForSequenceClassification,
            Qwen3Config(**qwen3, **classes),
            _llama("qwen3", head_dim=16, labels=LABELS, qk_norm=True),
        ),
        "gpt2": Sample(GPT2LMHeadModel, GPT2Config(**gpt2), _gpt2()),
        "gpt2 untied": Sample(GPT2LMHeadModel, GPT2Config(**gpt2, **untied), _gpt2(tied=False)),
        "gpt2 classes": Sample(
            GPT2ForSequenceClassification, GPT2Config(**gpt2, **classes), _gpt2(labels=LABELS)
        ),
        "gemma3": Sample(
            Gemma3ForCausalLM,
            Gemma3TextConfig(**gemma, tie_word_embeddings=True),
            _llama("gemma3_text", head_dim=16, tied=True, qk_norm=True),
        ),
        "gemma3 classes": Sample(
            Gemma3TextForSequenceClassification,
            Gemma3TextConfig(**gemma, num_labels=LABELS),
            _llama("gemma3_text", head_dim=16, labels=LABELS, qk_norm=True),
        ),
        "smollm3": Sample(
            SmolLM3ForCausalLM,
            SmolLM3Config(**DECODER, **tied, **biases, pad_token_id=0),
            _llama("smollm3", tied=True, **all_biases),
        ),
        "phi3": Sample(
            Phi3ForCausalLM, Phi3Config(**DECODER, **untied, pad_token_id=0), _llama("phi3")
        ),
        "phi3 classes": Sample(
            Phi3ForSequenceClassification,
            Phi3Config(**DECODER, **classes),
            _llama("phi3", labels=LABELS),
        ),
        "distilbert": Sample(
            DistilBertForSequenceClassification,
            DistilBertConfig(
                dim=48,
                hidden_dim=80,
                n_layers=3,
                n_heads=6,
                vocab_size=100,
                max_position_embeddings=70,
                num_labels=LABELS,
            ),
            _bert("distilbert", 0),
        ),
        "modernbert": Sample(
            ModernBertForSequenceClassification,
            ModernBertConfig(**ENCODER, pad_token_id=0, num_labels=LABELS, local_attention=8),
            _modernbert(),
        ),
        "modernbert biases": Sample(
            ModernBertForSequenceClassification,
            ModernBertConfig(
                **ENCODER,
                **biases,
                pad_token_id=0,
                num_labels=LABELS,
                norm_bias=True,
                classifier_bias=True,
            ),
            _modernbert(attention_bias=True, mlp_bias=True, norm_bias=True, head_bias=True),
        ),
        "bert": Sample(
            BertForSequenceClassification,
            BertConfig(**ENCODER, num_labels=LABELS),
            _bert("bert", 2),
        ),
        "roberta": Sample(
            RobertaForSequenceClassification,
            RobertaConfig(**ENCODER, type_vocab_size=1, num_labels=LABELS),
            _bert("roberta", 1),
        ),
    }


SAMPLES = samples()


@pytest.fixture(params=SAMPLES)
def sample(request: pytest.FixtureRequest) -> Sample:
    """Each family and head in turn."""
    return SAMPLES[request.param]


@pytest.fixture
def sample_of() -> Callable[[str], Sample]:
    """Return one sample by name."""
    return SAMPLES.__getitem__


def _workload(shape: ModelShape, **changes: object) -> Workload:
    plain = Workload(
        batch=2,
        tokens=16,
        local_steps=1,
        rank=4,
        lora_targets=tuple(linear.name for linear in shape.linears),
    )
    return replace(plain, **changes)


@pytest.fixture
def workload_of() -> Callable[..., Workload]:
    """Return a small workload for a shape, all linears adapted unless told otherwise."""
    return _workload


def _plan(count: int = 1, **columns: object) -> Assignments:
    plain = {
        "device": np.arange(count),
        "prune_heads": 0.0,
        "prune_ffn": 0.0,
        "rank": 4,
        "share": 1.0,
        "local_steps": 1,
        "cut": 0,
        "codec_index": 0,
    }
    arrays = {name: np.broadcast_to(value, count) for name, value in {**plain, **columns}.items()}
    return Assignments(**arrays)


@pytest.fixture
def plan_of() -> Callable[..., Assignments]:
    """Return assignments of n devices from columns or single values."""
    return _plan
