"""How the supported decoders become a `ModelShape`, from config numbers alone.

`llama_like` covers Llama, Mistral, Qwen2, Qwen3, Gemma 3, SmolLM3 and Phi-3, `gpt2_like` GPT-2; for
encoders see `encoders`. Parameter counts equal those of the Hugging Face model exactly, biases,
norms, position embeddings, pooler and classifier included; the names of the linear layers are the
tails of their module names there. What is trained of a classification head follows peft's default:
`score` here, `classifier` and DistilBERT's `pre_classifier` there, not BERT's pooler.
"""

from __future__ import annotations

from airtune.errors import ModelError
from airtune.plan import Linear, ModelShape


def llama_like(
    family: str,
    *,
    blocks: int,
    width: int,
    heads: int,
    kv_groups: int,
    head_dim: int,
    ffn: int,
    vocab: int,
    tied: bool,
    labels: int = 0,
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
) -> ModelShape:
    """Return the shape of a pre-norm decoder with a gated FFN and rotary positions.

    Args:
        family: The config's `model_type`. Gemma 3 has four norms a block; Phi-3 makes queries, keys
            and values by one matrix, gate and up projection by another.
        blocks: Transformer blocks.
        width: Hidden size.
        heads: Query heads.
        kv_groups: Key-value heads.
        head_dim: Width of one head; Qwen3's and Gemma's are not `width / heads`.
        ffn: Intermediate size.
        vocab: Rows of the embedding.
        tied: The output layer shares the embedding's weights.
        labels: Classes of the `score` head; 0 = language model.
        qkv_bias: The query, key and value projections have biases (Qwen2).
        output_bias: So has the attention's output projection (Llama with `attention_bias`).
        mlp_bias: So have the three FFN layers.
        qk_norm: Queries and keys are normalised a head (Qwen3, Gemma 3).

    Raises:
        ModelError: if a size is not positive or the heads do not form whole groups.

    >>> shape = llama_like("qwen2", blocks=24, width=896, heads=14, kv_groups=2, head_dim=64,
    ...                    ffn=4864, vocab=151936, tied=True, qkv_bias=True)
    >>> shape.parameters
    494032768
    """
    linears = _llama_linears(qkv_bias, output_bias, mlp_bias)
    sandwich = family == "gemma3_text"
    if family == "phi3":
        linears = _phi3_linears()
    output = width * (labels or (0 if tied else vocab))
    return checked_shape(
        ModelShape(
            family=family,
            task="classification" if labels else "causal-lm",
            blocks=blocks,
            width=width,
            heads=heads,
            kv_groups=kv_groups,
            head_dim=head_dim,
            ffn=ffn,
            vocab=vocab,
            tied=tied,
            labels=labels,
            linears=linears,
            gated=True,
            embedding_parameters=vocab * width,
            block_extra_parameters=2 * width * (1 + sandwich) + (2 * head_dim if qk_norm else 0),
            head_parameters=width + output,
            head_macs=width * (labels or vocab),
            trained_head_parameters=width * labels,
            rms_norm=True,
            head_norms=qk_norm,
            sandwich=sandwich,
        )
    )


def _llama_linears(qkv_bias: bool, output_bias: bool, mlp_bias: bool) -> tuple[Linear, ...]:
    return (
        Linear("q_proj", "width", "query", qkv_bias),
        Linear("k_proj", "width", "kv", qkv_bias),
        Linear("v_proj", "width", "kv", qkv_bias),
        Linear("o_proj", "query", "width", output_bias),
        Linear("gate_proj", "width", "ffn", mlp_bias),
        Linear("up_proj", "width", "ffn", mlp_bias),
        Linear("down_proj", "ffn", "width", mlp_bias),
    )


def _phi3_linears() -> tuple[Linear, ...]:
    return (
        Linear("qkv_proj", "width", "query", fused=("kv", "kv")),
        Linear("o_proj", "query", "width"),
        Linear("gate_up_proj", "width", "ffn", fused=("ffn",)),
        Linear("down_proj", "ffn", "width"),
    )


def gpt2_like(
    *,
    blocks: int,
    width: int,
    heads: int,
    ffn: int,
    vocab: int,
    positions: int,
    tied: bool = True,
    labels: int = 0,
) -> ModelShape:
    """Return the shape of GPT-2: fused queries, keys and values, plain FFN, learned positions.

    Args:
        blocks: Transformer blocks (`n_layer`).
        width: Hidden size (`n_embd`).
        heads: Attention heads, each a key-value group of its own.
        ffn: Inner size (`n_inner`, 4 x width by default).
        vocab: Rows of the token embedding.
        positions: Rows of the position embedding.
        tied: The output layer shares the token embedding's weights.
        labels: Classes of the `score` head; 0 = language model.

    Raises:
        ModelError: if a size is not positive or the width is no multiple of the heads.

    >>> gpt2_like(blocks=12, width=768, heads=12, ffn=3072, vocab=50257, positions=1024).parameters
    124439808
    """
    linears = (
        Linear("c_attn", "width", "query", bias=True, fused=("query", "query")),
        Linear("attn.c_proj", "query", "width", bias=True),
        Linear("c_fc", "width", "ffn", bias=True),
        Linear("mlp.c_proj", "ffn", "width", bias=True),
    )
    output = width * (labels or (0 if tied else vocab))
    return checked_shape(
        ModelShape(
            family="gpt2",
            task="classification" if labels else "causal-lm",
            blocks=blocks,
            width=width,
            heads=heads,
            kv_groups=heads,
            head_dim=head_dim_of(width, heads),
            ffn=ffn,
            vocab=vocab,
            tied=tied,
            labels=labels,
            linears=linears,
            gated=False,
            embedding_parameters=(vocab + positions) * width,
            block_extra_parameters=4 * width,
            head_parameters=2 * width + output,
            head_macs=width * (labels or vocab),
            trained_head_parameters=width * labels,
        )
    )


def head_dim_of(width: int, heads: int) -> int:
    """Return the width of one head.

    Raises:
        ModelError: if the width is no multiple of the heads.
    """
    if heads < 1 or width % heads:
        raise ModelError(f"the width must be a multiple of the heads, got {width} and {heads}")
    return width // heads


def checked_shape(shape: ModelShape) -> ModelShape:
    """Return a shape whose sizes make sense.

    Raises:
        ModelError: if a size is not positive, or the heads do not form whole groups.
    """
    for name in ("blocks", "width", "heads", "kv_groups", "head_dim", "ffn", "vocab"):
        if (size := getattr(shape, name)) < 1:
            raise ModelError(f"{name} of a model must be at least 1, got {size}")
    if shape.heads % shape.kv_groups:
        raise ModelError(
            f"query heads must form whole key-value groups, got {shape.heads} heads "
            f"and {shape.kv_groups} groups"
        )
    return shape
