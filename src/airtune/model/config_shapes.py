"""Reading a `ModelShape` out of a Hugging Face config, one function for each kind of config."""

from __future__ import annotations

from typing import TypeAlias

from transformers import PreTrainedConfig

from airtune.cost.encoders import bert_like, modernbert_like, vit_like
from airtune.cost.shapes import gpt2_like, llama_like
from airtune.errors import ModelError
from airtune.plan import ModelShape

Config: TypeAlias = PreTrainedConfig


def llama_like_shape(config: Config, labels: int) -> ModelShape:
    """Return the shape of a Llama or a neighbour of it.

    Raises:
        ModelError: if the config asks for what training here would not compute.
    """
    kind = config.model_type
    _check_gemma(config)
    bias = bool(getattr(config, "attention_bias", False)) and kind not in (
        "mistral",
        "qwen2",
        "phi3",
    )
    return llama_like(
        kind,
        blocks=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_groups=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
        ffn=config.intermediate_size,
        vocab=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
        labels=labels,
        qkv_bias=bias or kind == "qwen2",
        output_bias=bias,
        mlp_bias=kind in ("llama", "smollm3") and bool(config.mlp_bias),
        qk_norm=kind in ("qwen3", "gemma3_text"),
    )


def _check_gemma(config: Config) -> None:
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        raise ModelError(
            f"this {config.model_type} model caps its logits (final_logit_softcapping: {cap:g}), which "
            "the loss here does not; Gemma 3's own models do not cap them"
        )
    if getattr(config, "use_bidirectional_attention", False):
        raise ModelError(
            f"this {config.model_type} model attends to both sides (use_bidirectional_attention), so it "
            "makes embeddings and is no language model; take one that reads from left to right"
        )


def gpt2_shape(config: Config, labels: int) -> ModelShape:
    """Return the shape of a GPT-2."""
    return gpt2_like(
        blocks=config.n_layer,
        width=config.n_embd,
        heads=config.n_head,
        ffn=config.n_inner or 4 * config.n_embd,
        vocab=config.vocab_size,
        positions=config.n_positions,
        tied=bool(config.tie_word_embeddings),
        labels=labels,
    )


def bert_like_shape(config: Config, labels: int) -> ModelShape:
    """Return the shape of a BERT, a RoBERTa or a DistilBERT."""
    return bert_like(
        config.model_type,
        blocks=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        ffn=config.hidden_dim if config.model_type == "distilbert" else config.intermediate_size,
        vocab=config.vocab_size,
        positions=config.max_position_embeddings,
        types=getattr(config, "type_vocab_size", 0),
        labels=labels,
    )


def modernbert_shape(config: Config, labels: int) -> ModelShape:
    """Return the shape of a ModernBERT."""
    return modernbert_like(
        blocks=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        ffn=config.intermediate_size,
        vocab=config.vocab_size,
        labels=labels,
        attention_bias=bool(config.attention_bias),
        mlp_bias=bool(config.mlp_bias),
        norm_bias=bool(config.norm_bias),
        head_bias=bool(config.classifier_bias),
    )


def vit_shape(config: Config, labels: int) -> ModelShape:
    """Return the shape of a ViT.

    Raises:
        ModelError: if its images or patches are not square.
    """
    for name in ("image_size", "patch_size"):
        if not isinstance(size := getattr(config, name), int):
            raise ModelError(f"{name} of a vit model must be one number, got {size}")
    return vit_like(
        blocks=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
        ffn=config.intermediate_size,
        image=config.image_size,
        patch=config.patch_size,
        channels=config.num_channels,
        labels=labels,
        qkv_bias=bool(config.qkv_bias),
    )
