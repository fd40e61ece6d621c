"""How the supported architectures become a `ModelShape`, from config numbers alone.

Four constructors cover the families: `llama_like` (Llama, Mistral, Qwen2, Qwen3), `gpt2_like`,
`bert_like` (BERT, RoBERTa) and `vit_like` (ViT). Parameter counts equal those of the Hugging Face model exactly,
biases, norms, position embeddings, pooler and classifier included; the names of the linear layers
are the tails of their module names there. What is trained of a classification head follows peft's
default: the classifier (`score`, `classifier`), not BERT's pooler.
"""

from __future__ import annotations

from airtune.errors import ModelError
from airtune.plan import Linear, ModelShape

LLAMA_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
BERT_FAMILIES = ("bert", "roberta")


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
        family: "llama", "mistral", "qwen2" or "qwen3".
        blocks: Transformer blocks.
        width: Hidden size.
        heads: Query heads.
        kv_groups: Key-value heads.
        head_dim: Width of one head; Qwen3's is not `width / heads`.
        ffn: Intermediate size.
        vocab: Rows of the embedding.
        tied: The output layer shares the embedding's weights.
        labels: Classes of the `score` head; 0 = language model.
        qkv_bias: The query, key and value projections have biases (Qwen2).
        output_bias: So has the attention's output projection (Llama with `attention_bias`).
        mlp_bias: So have the three FFN layers.
        qk_norm: Queries and keys are normalised a head (Qwen3).

    Raises:
        ModelError: if a size is not positive or the heads do not form whole groups.

    >>> shape = llama_like("qwen2", blocks=24, width=896, heads=14, kv_groups=2, head_dim=64,
    ...                    ffn=4864, vocab=151936, tied=True, qkv_bias=True)
    >>> shape.parameters
    494032768
    """
    linears = _llama_linears(qkv_bias, output_bias, mlp_bias)
    output = width * (labels or (0 if tied else vocab))
    return _checked(
        ModelShape(
            family=family, task="classification" if labels else "causal-lm", blocks=blocks,
            width=width, heads=heads, kv_groups=kv_groups, head_dim=head_dim, ffn=ffn, vocab=vocab,
            tied=tied, labels=labels, linears=linears, gated=True,
            embedding_parameters=vocab * width,
            block_extra_parameters=2 * width + (2 * head_dim if qk_norm else 0),
            head_parameters=width + output,
            head_macs=width * (labels or vocab),
            trained_head_parameters=width * labels,
        ),
        LLAMA_FAMILIES,
    )  # fmt: skip


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
        Linear("c_attn", "width", "query", bias=True, repeats=3),
        Linear("attn.c_proj", "query", "width", bias=True),
        Linear("c_fc", "width", "ffn", bias=True),
        Linear("mlp.c_proj", "ffn", "width", bias=True),
    )
    output = width * (labels or (0 if tied else vocab))
    return _checked(
        ModelShape(
            family="gpt2", task="classification" if labels else "causal-lm", blocks=blocks,
            width=width, heads=heads, kv_groups=heads, head_dim=_head_dim(width, heads), ffn=ffn,
            vocab=vocab, tied=tied, labels=labels, linears=linears, gated=False,
            embedding_parameters=(vocab + positions) * width,
            block_extra_parameters=4 * width,
            head_parameters=2 * width + output,
            head_macs=width * (labels or vocab),
            trained_head_parameters=width * labels,
        ),
        ("gpt2",),
    )  # fmt: skip


def bert_like(
    family: str,
    *,
    blocks: int,
    width: int,
    heads: int,
    ffn: int,
    vocab: int,
    positions: int,
    types: int,
    labels: int,
) -> ModelShape:
    """Return the shape of a post-norm encoder with a sequence-classification head.

    Both heads hold a dense layer of the model's width and a classifier; BERT's dense layer is the
    pooler, which stays frozen, RoBERTa's belongs to the classifier and is trained.

    Args:
        family: "bert" or "roberta".
        blocks: Transformer blocks.
        width: Hidden size.
        heads: Attention heads, each a key-value group of its own.
        ffn: Intermediate size.
        vocab: Rows of the token embedding.
        positions: Rows of the position embedding (RoBERTa-base: 514).
        types: Rows of the token-type embedding.
        labels: Number of classes.

    Raises:
        ModelError: if a size is not positive or the width is no multiple of the heads.

    >>> bert_like("roberta", blocks=12, width=768, heads=12, ffn=3072, vocab=50265, positions=514,
    ...           types=1, labels=2).parameters
    124647170
    """
    linears = (
        Linear("query", "width", "query", bias=True),
        Linear("key", "width", "kv", bias=True),
        Linear("value", "width", "kv", bias=True),
        Linear("attention.output.dense", "query", "width", bias=True),
        Linear("intermediate.dense", "width", "ffn", bias=True),
        Linear("output.dense", "ffn", "width", bias=True),
    )
    _check_labels(family, labels)
    dense, classifier = width * (width + 1), labels * (width + 1)
    return _checked(
        ModelShape(
            family=family, task="classification", blocks=blocks, width=width, heads=heads,
            kv_groups=heads, head_dim=_head_dim(width, heads), ffn=ffn, vocab=vocab, tied=False,
            labels=labels, linears=linears, gated=False,
            embedding_parameters=(vocab + positions + types + 2) * width,
            block_extra_parameters=4 * width,
            head_parameters=dense + classifier,
            head_macs=width * (width + labels),
            trained_head_parameters=classifier + (dense if family == "roberta" else 0),
        ),
        BERT_FAMILIES,
    )  # fmt: skip


def vit_like(
    *,
    blocks: int,
    width: int,
    heads: int,
    head_dim: int,
    ffn: int,
    image: int,
    patch: int,
    channels: int,
    labels: int,
    qkv_bias: bool = True,
) -> ModelShape:
    """Return the shape of a vision transformer that classifies images.

    An image is `(image / patch)^2` patches and a class token, all of which pass the blocks; there
    is no vocabulary (`vocab` is 1). The multiply-adds of the patch projection, 0.7 % of ViT-Base's,
    are left out like every embedding's.

    Args:
        blocks: Transformer blocks.
        width: Hidden size.
        heads: Attention heads, each a key-value group of its own.
        head_dim: Width of one head.
        ffn: Intermediate size.
        image: Height and width of an image in pixels.
        patch: Height and width of a patch in pixels.
        channels: Colour channels.
        labels: Number of classes.
        qkv_bias: The query, key and value projections have biases.

    Raises:
        ModelError: if a size is not positive or the image is no whole number of patches.

    >>> vit_like(blocks=12, width=768, heads=12, head_dim=64, ffn=3072, image=224, patch=16,
    ...          channels=3, labels=1000).parameters
    86567656
    """
    _check_labels("vit", labels)
    linears = _vit_linears(qkv_bias)
    tokens, classifier = _patches(image, patch) + 1, labels * (width + 1)
    return _checked(
        ModelShape(
            family="vit", task="classification", blocks=blocks, width=width, heads=heads,
            kv_groups=heads, head_dim=head_dim, ffn=ffn, vocab=1, tied=False, labels=labels,
            linears=linears, gated=False,
            embedding_parameters=(channels * patch**2 + 1 + 1 + tokens) * width,
            block_extra_parameters=4 * width,
            head_parameters=2 * width + classifier,
            head_macs=width * labels,
            trained_head_parameters=classifier,
        ),
        ("vit",),
    )  # fmt: skip


def _vit_linears(qkv_bias: bool) -> tuple[Linear, ...]:
    return (
        Linear("q_proj", "width", "query", qkv_bias),
        Linear("k_proj", "width", "kv", qkv_bias),
        Linear("v_proj", "width", "kv", qkv_bias),
        Linear("o_proj", "query", "width", bias=True),
        Linear("fc1", "width", "ffn", bias=True),
        Linear("fc2", "ffn", "width", bias=True),
    )


def _check_labels(family: str, labels: int) -> None:
    if labels < 1:
        raise ModelError(f"a {family} model needs at least 1 class, got labels={labels}")


def _patches(image: int, patch: int) -> int:
    if patch < 1 or image < patch or image % patch:
        raise ModelError(
            f"an image must be a whole number of patches, got {image} and {patch} pixels"
        )
    return int((image // patch) ** 2)


def _head_dim(width: int, heads: int) -> int:
    if heads < 1 or width % heads:
        raise ModelError(f"the width must be a multiple of the heads, got {width} and {heads}")
    return width // heads


def _checked(shape: ModelShape, families: tuple[str, ...]) -> ModelShape:
    if shape.family not in families:
        allowed = ", ".join(families)
        raise ModelError(f"unknown model family {shape.family!r} here, allowed are {allowed}")
    for name in ("blocks", "width", "heads", "kv_groups", "head_dim", "ffn", "vocab"):
        if (size := getattr(shape, name)) < 1:
            raise ModelError(f"{name} of a model must be at least 1, got {size}")
    if shape.heads % shape.kv_groups:
        raise ModelError(
            f"query heads must form whole key-value groups, got {shape.heads} heads "
            f"and {shape.kv_groups} groups"
        )
    return shape
