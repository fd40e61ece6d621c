"""The supported architectures: where blocks, heads, groups and channels are in each of them.

One entry of `FAMILIES` describes one Hugging Face `model_type`; everything else in this room works
from the description, so a new family is a new entry. It does not load weights (see `base`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from airtune.errors import ModelError
from airtune.model.config_shapes import Config as Config
from airtune.model.config_shapes import (
    bert_like_shape,
    gpt2_shape,
    llama_like_shape,
    modernbert_shape,
    vit_shape,
)
from airtune.plan import ModelShape

Resize = Callable[[nn.Module, ModelShape, int], None]


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
    dense_head: str = ""
    """A layer between backbone and head that is trained with it, where that is a module apart."""
    ffn_field: str = "intermediate_size"
    """The config's name for the number of FFN channels."""
    any_head_count: bool = True
    """A plain config of this family can say how many heads are left."""
    heads_divide_width: bool = False
    """Its config is refused by transformers where the number of heads does not divide the width."""
    bias_switches: Mapping[str, str] = field(default_factory=dict)
    """Output projection -> the config's switch that gives it a bias, where there is one."""
    resize_: Resize | None = None
    """Tells a sliced block how many key-value groups it has, where it splits a fused layer by a
    number of its own."""

    @property
    def heads(self) -> tuple[str, ...]:
        """The modules of the head that are trained for classification."""
        return tuple(name for name in (self.dense_head, self.head) if name)

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


_LLAMA_LINEARS = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}
_PHI3_LINEARS = {
    "qkv_proj": "self_attn.qkv_proj",
    "o_proj": "self_attn.o_proj",
    "gate_up_proj": "mlp.gate_up_proj",
    "down_proj": "mlp.down_proj",
}
_BOTH_SWITCHES = {"o_proj": "attention_bias", "down_proj": "mlp_bias"}


def _resize_gpt2_(block: nn.Module, shape: ModelShape, groups: int) -> None:
    block.get_submodule("attn").split_size = groups * shape.group_width  # type: ignore[assignment]


def _resize_phi3_(block: nn.Module, shape: ModelShape, groups: int) -> None:
    """Phi-3 splits by two numbers, one of them in the config that all blocks share."""
    attention = block.get_submodule("self_attn")
    config = copy.copy(attention.config)
    vars(config)["num_attention_heads"] = groups * (shape.heads // shape.kv_groups)
    vars(attention).update(config=config, num_key_value_heads=groups)


def _llama_like(
    name: str,
    bias_switches: Mapping[str, str] | None = None,
    *,
    linears: Mapping[str, str] | None = None,
    heads_divide_width: bool = False,
    resize_: Resize | None = None,
) -> Family:
    return Family(
        name=name,
        causal=True,
        backbone="model",
        blocks="layers",
        linears=linears or _LLAMA_LINEARS,
        attention_output="o_proj",
        ffn_output="down_proj",
        head="score",
        shape=llama_like_shape,
        heads_divide_width=heads_divide_width,
        bias_switches=bias_switches or {},
        resize_=resize_,
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
        shape=bert_like_shape,
        any_head_count=False,
    )


FAMILIES: Mapping[str, Family] = {
    "llama": _llama_like("llama", _BOTH_SWITCHES, heads_divide_width=True),
    "mistral": _llama_like("mistral"),
    "qwen2": _llama_like("qwen2"),
    "qwen3": _llama_like("qwen3", {"o_proj": "attention_bias"}),
    "gemma3_text": _llama_like(
        "gemma3_text", {"o_proj": "attention_bias"}, heads_divide_width=True
    ),
    "smollm3": _llama_like("smollm3", _BOTH_SWITCHES),
    "phi3": _llama_like("phi3", linears=_PHI3_LINEARS, resize_=_resize_phi3_),
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
        shape=gpt2_shape,
        ffn_field="n_inner",
        any_head_count=False,
        resize_=_resize_gpt2_,
    ),
    "bert": _bert_like("bert"),
    "roberta": _bert_like("roberta"),
    "distilbert": Family(
        name="distilbert",
        causal=False,
        backbone="distilbert",
        blocks="transformer.layer",
        linears={
            "q_lin": "attention.q_lin",
            "k_lin": "attention.k_lin",
            "v_lin": "attention.v_lin",
            "out_lin": "attention.out_lin",
            "lin1": "ffn.lin1",
            "lin2": "ffn.lin2",
        },
        attention_output="out_lin",
        ffn_output="lin2",
        head="classifier",
        shape=bert_like_shape,
        dense_head="pre_classifier",
        ffn_field="hidden_dim",
        any_head_count=False,
    ),
    "modernbert": Family(
        name="modernbert",
        causal=False,
        backbone="model",
        blocks="layers",
        linears={name: name for name in ("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo")},
        attention_output="attn.Wo",
        ffn_output="mlp.Wo",
        head="classifier",
        shape=modernbert_shape,
        any_head_count=False,
        bias_switches={"attn.Wo": "attention_bias", "mlp.Wo": "mlp_bias"},
    ),
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
        shape=vit_shape,
    ),
}
"""The supported `model_type`s."""
