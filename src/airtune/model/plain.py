"""The plain config that says what is left of a model, or a neighbour's that can.

| family | heads | FFN channels |
|---|---|---|
| Mistral, Qwen2, Qwen3, ViT | any count | any count |
| Llama | any count; as Mistral, or with biases as Granite, where the heads left do not divide the width | any count |
| GPT-2, BERT, RoBERTa | all of them | any count |

with the same counts in every block. Constants that make up for what is removed become biases: GPT-2,
BERT, RoBERTa and ViT have them, Llama's config has a switch for them, Qwen3's for its attention; the
other biases that a switch brings are zero.
"""

from __future__ import annotations

from collections.abc import Sized

from transformers import GraniteConfig, MistralConfig

from airtune.errors import ModelError
from airtune.model.base import BaseModel
from airtune.model.families import Config, Family
from airtune.model.kept import Kept, check_kept
from airtune.model.weights import bias_of
from airtune.plan import ModelShape


def plain_config(base: BaseModel, kept: Kept, *, constants: frozenset[str] = frozenset()) -> Config:
    """Return the config under which plain transformers loads a slice.

    Args:
        base: The unpruned model.
        kept: What is left.
        constants: Output projections that hold one for what they lost, which takes a bias.

    Raises:
        ModelError: if there is none: counts differ over blocks, the family cannot have fewer
            heads, or a bias where a constant is, or the base is held in 4 bits.
    """
    check_kept(kept, base.shape)
    groups, channels = _uniform("groups", kept.groups), _uniform("channels", kept.channels)
    if getattr(base.network, "is_quantized", False):
        raise ModelError(
            "a 4-bit base cannot be saved merged or pruned; save the adapter, or load the base "
            "with load_in_4bit: false"
        )
    settings = base.network.config.to_dict()
    settings.pop("auto_map", None)  # code that is not there and was not run
    config = type(base.network.config).from_dict(settings)
    setattr(config, base.family.ffn_field, channels)
    lost = {
        base.family.attention_output: groups < base.shape.kv_groups,
        base.family.ffn_output: channels < base.shape.ffn,
    }
    for name in sorted(constants):
        if lost[name] and bias_of(base.family.linear(base.network, 0, name)) is None:
            setattr(config, _bias_switch(base.family, name), True)
    if groups == base.shape.kv_groups:
        return config
    if not base.family.any_head_count:
        raise ModelError(
            f"a plain {base.family.name} config cannot have fewer heads, got {groups} of "
            f"{base.shape.kv_groups}; prune FFN channels only for an export, or save the adapter"
        )
    heads = groups * (base.shape.heads // base.shape.kv_groups)
    if base.family.heads_divide_width and base.shape.width % heads:
        return _as_neighbour(config, base.shape, heads, groups)
    config.head_dim = base.shape.head_dim
    config.num_attention_heads = heads
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = groups
    return config


def _bias_switch(family: Family, name: str) -> str:
    if name not in family.bias_switches:
        raise ModelError(
            f"{name} of a {family.name} model has no bias, and its config no switch for one, to hold "
            "the mean of what was removed; save it without means, or with least squares, which "
            "needs no bias"
        )
    return family.bias_switches[name]


def _as_neighbour(config: Config, shape: ModelShape, heads: int, groups: int) -> Config:
    """Return Llama's config under a name that allows any number of heads and computes the same.

    Gemma 3 has no such neighbour.

    A Mistral without a window; with biases, which Mistral lacks, a Granite whose multipliers are
    Llama's.
    """
    if config.model_type != "llama":
        raise ModelError(
            f"{heads} heads do not divide a width of {shape.width}, which a plain "
            f"{config.model_type} config demands; keep a number of groups whose heads divide it, or "
            "prune FFN channels only"
        )
    settings = config.to_dict()
    has_bias = bool(config.attention_bias or config.mlp_bias)
    if has_bias and shape.labels:
        raise ModelError(
            f"{heads} heads do not divide a width of {shape.width}, which Llama's config demands, "
            "and of the configs that do not, none has both biases and a classification head; keep "
            "a number of groups whose heads divide the width, or set train.mend to none"
        )
    own = {
        "model_type",
        "architectures",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "pretraining_tp",
        "sliding_window",
    }
    if not has_bias:
        own |= {"attention_bias", "mlp_bias"}
    given = {name: value for name, value in settings.items() if name not in own}
    given |= {
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": shape.head_dim,
    }
    if has_bias:
        return GraniteConfig(**given, attention_multiplier=shape.head_dim**-0.5)
    return MistralConfig(**given, sliding_window=None)


def _uniform(name: str, rows: tuple[Sized, ...]) -> int:
    counts = sorted({len(row) for row in rows})
    if len(counts) > 1:
        raise ModelError(
            f"a plain config has one number of {name} for all blocks, got {counts}; "
            "prune uniformly over the blocks for an export"
        )
    return counts[0]
