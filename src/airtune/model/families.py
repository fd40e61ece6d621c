"""The supported architectures: where blocks, heads, groups and channels are in each of them.

One entry of `FAMILIES` describes one Hugging Face `model_type`; everything else in this room works
from the description, so a new family is a new entry. It does not load weights (see `base`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import nn
from transformers import PreTrainedConfig

from airtune.cost.shapes import bert_like, gpt2_like, llama_like, vit_like
from airtune.errors import ModelError
from airtune.plan import ModelShape

Config: TypeAlias = PreTrainedConfig


@dataclass(frozen=True, slots=True)
class Family:
    """Where the parts of one architecture are, as paths of modules.

    The names of linear layers are those of the family's `ModelShape`.
    """

    name: str
    """The config's `model_type`."""
    causal: bool
    """A decoder, which can be a language model; otherwise an encoder, which only classifies."""
    backbone: str
    """The network without its task head."""
    blocks: str
    """The list of blocks, from the backbone."""
    linears: Mapping[str, str]
    """Linear layer of a block -> its path from the block."""
    attention_output: str
    """The linear layer that reads the heads."""
    ffn_output: str
    """The linear layer that reads the FFN channels."""
    head: str
    """The task head that is trained for classification, from the network."""
    shape: Callable[[Config, int], ModelShape]
    any_head_count: bool = True
    """A plain config of this family can say how many heads are left."""
    bias_switches: Mapping[str, str] = field(default_factory=dict)
    """Output projection -> the config's switch that gives it a bias, where there is one."""
    fused_width: str = ""
    """Attribute of a block that holds the width of each part of a fused query-key-value layer."""

    def block_list(self, network: nn.Module) -> nn.ModuleList:
        """Return the network's blocks, first to last."""
        blocks = network.get_submodule(f"{self.backbone}.{self.blocks}")
        if not isinstance(blocks, nn.ModuleList):
            raise ModelError(f"{self.backbone}.{self.blocks} of a {self.name} model is no list")
        return blocks

    def linear(self, network: nn.Module, block: int, name: str) -> nn.Module:
        """Return one linear layer, for instance block 3's `q_proj`."""
        return self.block_list(network)[block].get_submodule(self.linears[name])

    def path(self, block: int, name: str) -> str:
        """Return the path of a linear layer from the network, as in its state dict."""
        return f"{self.backbone}.{self.blocks}.{block}.{self.linears[name]}"


def family_of(config: Config) -> Family:
    """Return the description of a config's architecture.

    Raises:
        ModelError: if it is none of the supported families.
    """
    name = str(getattr(config, "model_type", None))
    if name not in FAMILIES:
        raise ModelError(
            f"model type {name!r} is not supported; supported are {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[name]


def shape_from_config(config: Config, *, labels: int = 0) -> ModelShape:
    """Return what a model is made of, from its config alone.

    Args:
        config: A Hugging Face config of a supported family.
        labels: Number of classes; 0 = a language model.

    Raises:
        ModelError: if the family is not supported, or an encoder is asked to be a language model.

    >>> from transformers import Qwen2Config
    >>> config = Qwen2Config(hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    >>> shape_from_config(config).head_dim
    16
    """
    family = family_of(config)
    if labels == 0 and not family.causal:
        raise ModelError(
            f"a {family.name} model is an encoder and cannot be a language model; "
            "choose a classification task or a decoder"
        )
    return family.shape(config, labels)


def replace_module_(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place that `path` names; changes `root`."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def _llama_like_shape(config: Config, labels: int) -> ModelShape:
    kind = config.model_type
    bias = bool(getattr(config, "attention_bias", False)) and kind in ("llama", "qwen3")
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
        mlp_bias=kind == "llama" and bool(config.mlp_bias),
        qk_norm=kind == "qwen3",
    )


def _gpt2_shape(config: Config, labels: int) -> ModelShape:
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


def _bert_like_shape(config: Config, labels: int) -> ModelShape:
    return bert_like(
        config.model_type,
        blocks=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        ffn=config.intermediate_size,
        vocab=config.vocab_size,
        positions=config.max_position_embeddings,
        types=config.type_vocab_size,
        labels=labels,
    )


def _vit_shape(config: Config, labels: int) -> ModelShape:
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


def _llama_like(name: str, bias_switches: Mapping[str, str] | None = None) -> Family:
    return Family(
        name=name,
        causal=True,
        backbone="model",
        blocks="layers",
        linears={
            "q_proj": "self_attn.q_proj",
            "k_proj": "self_attn.k_proj",
            "v_proj": "self_attn.v_proj",
            "o_proj": "self_attn.o_proj",
            "gate_proj": "mlp.gate_proj",
            "up_proj": "mlp.up_proj",
            "down_proj": "mlp.down_proj",
        },
        attention_output="o_proj",
        ffn_output="down_proj",
        head="score",
        shape=_llama_like_shape,
        bias_switches=bias_switches or {},
    )


def _bert_like(name: str) -> Family:
    return Family(
        name=name,
        causal=False,
        backbone=name,
        blocks="encoder.layer",
        linears={
            "query": "attention.self.query",
            "key": "attention.self.key",
            "value": "attention.self.value",
            "attention.output.dense": "attention.output.dense",
            "intermediate.dense": "intermediate.dense",
            "output.dense": "output.dense",
        },
        attention_output="attention.output.dense",
        ffn_output="output.dense",
        head="classifier",
        shape=_bert_like_shape,
        any_head_count=False,
    )


FAMILIES: Mapping[str, Family] = {
    "llama": _llama_like("llama", {"o_proj": "attention_bias", "down_proj": "mlp_bias"}),
    "mistral": _llama_like("mistral"),
    "qwen2": _llama_like("qwen2"),
    "qwen3": _llama_like("qwen3", {"o_proj": "attention_bias"}),
    "gpt2": Family(
        name="gpt2",
        causal=True,
        backbone="transformer",
        blocks="h",
        linears={
            "c_attn": "attn.c_attn",
            "attn.c_proj": "attn.c_proj",
            "c_fc": "mlp.c_fc",
            "mlp.c_proj": "mlp.c_proj",
        },
        attention_output="attn.c_proj",
        ffn_output="mlp.c_proj",
        head="score",
        shape=_gpt2_shape,
        any_head_count=False,
        fused_width="attn.split_size",
    ),
    "bert": _bert_like("bert"),
    "roberta": _bert_like("roberta"),
    "vit": Family(
        name="vit",
        causal=False,
        backbone="vit",
        blocks="layers",
        linears={
            "q_proj": "attention.q_proj",
            "k_proj": "attention.k_proj",
            "v_proj": "attention.v_proj",
            "o_proj": "attention.o_proj",
            "fc1": "mlp.fc1",
            "fc2": "mlp.fc2",
        },
        attention_output="o_proj",
        ffn_output="fc2",
        head="classifier",
        shape=_vit_shape,
    ),
}
"""The supported `model_type`s."""
