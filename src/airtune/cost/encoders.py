"""How the supported encoders become a `ModelShape`, from config numbers alone; see `shapes`.

`bert_like` covers BERT, RoBERTa and DistilBERT, `modernbert_like` ModernBERT, `vit_like` ViT.
"""

from __future__ import annotations

from airtune.cost.shapes import checked_shape, head_dim_of
from airtune.errors import ModelError
from airtune.plan import Linear, ModelShape
from airtune.plan.shape import Axis

_BERT_NAMES = (
    "query",
    "key",
    "value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
_DISTILBERT_NAMES = ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2")
_BERT_AXES: tuple[tuple[Axis, Axis], ...] = (
    ("width", "query"), ("width", "kv"), ("width", "kv"), ("query", "width"), ("width", "ffn"),
    ("ffn", "width"),
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

    Every head holds a dense layer of the model's width and a classifier; BERT's dense layer is the
    pooler, which stays frozen, RoBERTa's and DistilBERT's belong to the classifier and are trained.

    Args:
        family: "bert", "roberta" or "distilbert".
        blocks: Transformer blocks.
        width: Hidden size.
        heads: Attention heads, each a key-value group of its own.
        ffn: Intermediate size.
        vocab: Rows of the token embedding.
        positions: Rows of the position embedding (RoBERTa-base: 514).
        types: Rows of the token-type embedding; DistilBERT has none, 0.
        labels: Number of classes.

    Raises:
        ModelError: if a size is not positive or the width is no multiple of the heads.

    >>> bert_like("roberta", blocks=12, width=768, heads=12, ffn=3072, vocab=50265, positions=514,
    ...           types=1, labels=2).parameters
    124647170
    """
    names = _DISTILBERT_NAMES if family == "distilbert" else _BERT_NAMES
    linears = tuple(
        Linear(name, reads, makes, bias=True)
        for name, (reads, makes) in zip(names, _BERT_AXES, strict=True)
    )
    _check_labels(family, labels)
    dense, classifier = width * (width + 1), labels * (width + 1)
    return checked_shape(
        ModelShape(
            family=family,
            task="classification",
            blocks=blocks,
            width=width,
            heads=heads,
            kv_groups=heads,
            head_dim=head_dim_of(width, heads),
            ffn=ffn,
            vocab=vocab,
            tied=False,
            labels=labels,
            linears=linears,
            gated=False,
            embedding_parameters=(vocab + positions + types + 2) * width,
            block_extra_parameters=4 * width,
            head_parameters=dense + classifier,
            head_macs=width * (width + labels),
            trained_head_parameters=classifier + (0 if family == "bert" else dense),
        )
    )


def modernbert_like(
    *,
    blocks: int,
    width: int,
    heads: int,
    ffn: int,
    vocab: int,
    labels: int,
    attention_bias: bool = False,
    mlp_bias: bool = False,
    norm_bias: bool = False,
    head_bias: bool = False,
) -> ModelShape:
    """Return the shape of ModernBERT: a pre-norm encoder with a gated FFN and rotary positions.

    One matrix makes queries, keys and values, another the FFN's two inner projections. The first
    block has no norm before its attention, the embedding has one instead. The head is a frozen dense
    layer with a norm, and a classifier, which is trained.

    Args:
        blocks: Transformer blocks.
        width: Hidden size.
        heads: Attention heads, each a key-value group of its own.
        ffn: Intermediate size.
        vocab: Rows of the embedding.
        labels: Number of classes.
        attention_bias: The two attention layers have biases.
        mlp_bias: So have the two FFN layers.
        norm_bias: So have the norms.
        head_bias: So has the head's dense layer.

    Raises:
        ModelError: if a size is not positive or the width is no multiple of the heads.

    >>> modernbert_like(blocks=22, width=768, heads=12, ffn=1152, vocab=50368,
    ...                 labels=2).parameters
    149606402
    """
    linears = (
        Linear("attn.Wqkv", "width", "query", attention_bias, fused=("kv", "kv")),
        Linear("attn.Wo", "query", "width", attention_bias),
        Linear("mlp.Wi", "width", "ffn", mlp_bias, fused=("ffn",)),
        Linear("mlp.Wo", "ffn", "width", mlp_bias),
    )
    _check_labels("modernbert", labels)
    norm, dense, classifier = (
        width * (1 + norm_bias),
        width * (width + head_bias),
        labels * (width + 1),
    )
    return checked_shape(
        ModelShape(
            family="modernbert",
            task="classification",
            blocks=blocks,
            width=width,
            heads=heads,
            kv_groups=heads,
            head_dim=head_dim_of(width, heads),
            ffn=ffn,
            vocab=vocab,
            tied=False,
            labels=labels,
            linears=linears,
            gated=True,
            embedding_parameters=vocab * width,
            block_extra_parameters=2 * norm,
            head_parameters=norm + dense + norm + classifier,
            head_macs=width * (width + labels),
            trained_head_parameters=classifier,
        )
    )


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
    return checked_shape(
        ModelShape(
            family="vit",
            task="classification",
            blocks=blocks,
            width=width,
            heads=heads,
            kv_groups=heads,
            head_dim=head_dim,
            ffn=ffn,
            vocab=1,
            tied=False,
            labels=labels,
            linears=linears,
            gated=False,
            embedding_parameters=(channels * patch**2 + 1 + 1 + tokens) * width,
            block_extra_parameters=4 * width,
            head_parameters=2 * width + classifier,
            head_macs=width * labels,
            trained_head_parameters=classifier,
        )
    )


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
