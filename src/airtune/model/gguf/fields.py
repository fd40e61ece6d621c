"""Which configs a GGUF file can say exactly, and how.

Every field of a config is written, follows from the architecture, or has no part in what is computed
after training. A field that is none of these must have the value its class gives it; otherwise the
file would compute something else, and the model is refused with the field's name. Of a Llama's biases
those after attention and MLP are written, which llama.cpp adds where they are; the others only a
pruned model's config demands, and they must be zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedModel

from airtune.errors import ModelError
from airtune.model.families import Config
from airtune.model.gguf.package import require_gguf

ARCHITECTURES = MappingProxyType(
    {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "granite": "llama"}
)
"""`model_type` -> what GGUF calls it. A Granite with Llama's multipliers is what a pruned Llama with
biases is saved as where its heads do not divide the width."""
_WRITTEN = frozenset({
    "vocab_size", "max_position_embeddings", "hidden_size", "num_hidden_layers", "head_dim",
    "intermediate_size", "num_attention_heads", "num_key_value_heads", "rms_norm_eps",
    "tie_word_embeddings", "rope_parameters",
})  # fmt: skip
_NO_PART = frozenset({
    "architectures", "attention_dropout", "bos_token_id", "chunk_size_feed_forward", "dtype",
    "eos_token_id", "finetuning_task", "id2label", "initializer_range", "is_encoder_decoder",
    "label2id", "model_type", "name_or_path", "_name_or_path", "num_labels", "output_attentions",
    "output_hidden_states", "pad_token_id", "pretraining_tp", "problem_type", "return_dict",
    "task_specific_params", "tokenizer_class", "torch_dtype", "transformers_version", "use_cache",
    "attention_bias", "mlp_bias", "layer_types", "sliding_window", "use_sliding_window", "max_window_layers",
})  # fmt: skip
"""Among them those of sliding windows and biases, which `_window` and `_biases` judge."""


def check_gguf(network: PreTrainedModel) -> None:
    """Refuse a model that GGUF cannot say exactly, before any work is done for it.

    Raises:
        ModelError: naming what is in the way.
        MissingExtraError: if nothing is, but the gguf package is not installed.
    """
    config = network.config
    if config.model_type not in ARCHITECTURES or not hasattr(network, "lm_head"):
        raise ModelError(
            f"gguf is written for language models of {', '.join(ARCHITECTURES)}, got "
            f"{config.model_type} ({type(network).__name__}); export pruned or merged"
        )
    for what in (_rope(config), _window(config), _biases(network), *_others(config)):
        if what:
            raise ModelError(
                f"gguf is not written for a {config.model_type} model with {what}; export merged or "
                "pruned, then convert that folder with llama.cpp's convert_hf_to_gguf.py"
            )
    require_gguf()  # last: no one is to install it for a model that it cannot say


def is_unwritten_bias(name: str, config: Config) -> bool:
    """Return whether a tensor is a bias for which llama.cpp's Llama has no place at every size."""
    layer = name.removesuffix(".bias").rpartition(".")[2]
    return (
        ARCHITECTURES[config.model_type] == "llama"
        and name.endswith(".bias")
        and layer not in ("o_proj", "down_proj")
    )


def add_fields(writer: Any, config: Config) -> None:
    """Write the sizes and constants of a checked config."""
    head_dim = head_dim_of(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def head_dim_of(config: Config) -> int:
    """Return the width of one head."""
    given = getattr(config, "head_dim", None)
    return int(given or config.hidden_size // config.num_attention_heads)


def _rope(config: Config) -> str:
    """Return what is unusual about a config's positions, or ""."""
    rope: Mapping[str, Any] = config.rope_parameters or {}
    kind = rope.get("rope_type", "default")
    if kind != "default":
        return f"{kind} rope"
    plain = {"rope_type": "default", "partial_rotary_factor": 1.0}
    odd = {
        name: value
        for name, value in rope.items()
        if name != "rope_theta" and value != plain.get(name)
    }
    return f"rope_parameters of {odd}" if odd else ""


def _window(config: Config) -> str:
    """Return a sliding window that is used by a block, or ""."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    used = window is not None and window < config.max_position_embeddings
    if types is not None:
        used = used and "sliding_attention" in types
    return f"a sliding window of {window}" if used else ""


def _biases(network: PreTrainedModel) -> str:
    """Return that a model has biases GGUF has no place for, or ""."""
    config = network.config
    if ARCHITECTURES[config.model_type] != "llama":  # Qwen2's are written, Qwen3's are refused
        return "biases" if getattr(config, "attention_bias", False) else ""
    tensors = network.state_dict().items()
    odd = any(bool(tensor.any()) for name, tensor in tensors if is_unwritten_bias(name, config))
    return "biases before attention or MLP" if odd else ""


def _others(config: Config) -> list[str]:
    """Return every other field that is not as its class has it, or as Llama computes."""
    usual, found = type(config)().to_dict(), config.to_dict()
    if config.model_type == "granite":
        usual |= {"attention_multiplier": head_dim_of(config) ** -0.5}
    judged = _WRITTEN | _NO_PART
    odd = sorted(
        name
        for name, value in found.items()
        if name in usual and name not in judged and not _same(value, usual[name])
    )
    if any(name.endswith(("_multiplier", "_scaling")) for name in odd):
        return ["multipliers of its own"]
    return [f"{name}: {found[name]!r}" for name in odd]


def _same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other)
    return one == other
