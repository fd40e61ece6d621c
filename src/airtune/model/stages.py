"""What a cut network is made of: stand-ins for what the other side holds, and stages between.

A half is the Hugging Face backbone itself with some modules exchanged, so attention masks, positions
and the order of things stay transformers' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from airtune.errors import ModelError
from airtune.model.families import Family, family_of, replace_module_
from airtune.model.lora import Adapters
from airtune.model.weights import twin_of


@dataclass(frozen=True, slots=True)
class Ends:
    """What surrounds the blocks of a family, as paths from the backbone; "" = there is none."""

    embedding: str
    position: str = ""
    """A second embedding that the backbone adds itself."""
    norm: str = ""


_LLAMA = Ends("embed_tokens", norm="norm")
_ENDS: Mapping[str, Ends] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma3_text": _LLAMA,
    "smollm3": _LLAMA,
    "phi3": _LLAMA,
    "gpt2": Ends("wte", "wpe", "ln_f"),
    "bert": Ends("embeddings"),
    "roberta": Ends("embeddings"),
    "distilbert": Ends("embeddings"),
    "modernbert": Ends("embeddings", norm="final_norm"),
    "vit": Ends("embeddings", norm="layernorm"),
}


class ReceivedInput(nn.Module):
    """Stands where the embedding was and returns what came over the air."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.activation = torch.empty(0)
        # A vision transformer asks this layer's weight for its dtype.
        self.patch_embeddings = getattr(embedding, "patch_embeddings", None)

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        """Return what came, whatever it is asked for."""
        return self.activation


class Nothing(nn.Module):
    """Stands where the position embedding was; positions are in the activation already."""

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        """Return zero."""
        return torch.zeros(())


class Stage(nn.Module):
    """A block that only the rows of devices that have joined go through; they come first."""

    def __init__(self, block: nn.Module, *, is_held: bool) -> None:
        super().__init__()
        self.block = block if is_held else None
        self.joined = 0
        # ModernBERT asks its blocks which mask they need
        self.attention_type = getattr(block, "attention_type", "")

    def forward(self, hidden: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        """Map (rows, tokens, width) to the same shape."""
        count, rows = self.joined, hidden.shape[0]
        if self.block is None or count == 0:
            return hidden
        if count == rows:
            return torch.as_tensor(self.block(hidden, *args, **kwargs))
        out = self.block(
            hidden[:count],
            *(_first_rows(value, rows, count) for value in args),
            **{name: _first_rows(value, rows, count) for name, value in kwargs.items()},
        )
        return torch.cat([out, hidden[count:]])


class Given(nn.Module):
    """Stands where the backbone was and returns the last hidden state that came."""

    def __init__(self, pooler: nn.Module | None) -> None:
        super().__init__()
        self.pooler = pooler
        self.hidden = torch.empty(0)

    def forward(self, *args: object, **kwargs: object) -> BaseModelOutputWithPooling:
        """Return what came as a backbone would."""
        pooled = None if self.pooler is None else self.pooler(self.hidden)
        return BaseModelOutputWithPooling(last_hidden_state=self.hidden, pooler_output=pooled)


def check_cut(cut: int, blocks: int) -> None:
    """Refuse a cut that leaves one side without a block.

    Raises:
        ModelError: if it is outside the model.

    >>> check_cut(3, 12)
    """
    if not 1 <= cut <= blocks - 1:
        raise ModelError(
            f"a cut must be between 1 and {blocks - 1} of {blocks} blocks, got {cut}; "
            "leave it out to keep the whole model on the device"
        )


def held_by_device(adapters: Mapping[str, torch.Tensor], cut: int) -> Adapters:
    """Return the adapters of the blocks before a cut."""
    return {name: item for name, item in adapters.items() if int(name.partition(".")[0]) < cut}


def held_by_server(adapters: Mapping[str, torch.Tensor], cut: int) -> Adapters:
    """Return the adapters of the blocks from a cut on."""
    return {name: item for name, item in adapters.items() if int(name.partition(".")[0]) >= cut}


def head_positions(network: PreTrainedModel, mask: torch.Tensor) -> torch.Tensor:
    """Return which positions of the last hidden state the head reads, as far as the mask tells.

    A language model may read all real ones, and so does a ModernBERT that takes their mean; another
    classifier reads one: a decoder the last, an encoder the first.

    Args:
        network: The model.
        mask: (rows, tokens).
    """
    family = family_of(network.config)
    pools = getattr(network.config, "classifier_pooling", "cls") == "mean"
    if pools or not hasattr(network, family.head):
        return mask.bool()
    last = mask.sum(1) - 1 if family.causal else torch.zeros_like(mask[:, 0])
    return torch.arange(mask.shape[1], device=mask.device) == last[:, None]


def ends_of(family: Family) -> Ends:
    """Return what surrounds a family's blocks.

    Raises:
        ModelError: if it is not known, so that the family cannot be cut.
    """
    if family.name not in _ENDS:
        raise ModelError(f"a {family.name} model cannot be cut; {', '.join(sorted(_ENDS))} can be")
    return _ENDS[family.name]


def head_network(network: nn.Module, family: Family) -> nn.Module:
    """Return the head alone, as a network whose backbone returns what it is given."""
    twin = twin_of(network)
    pooler = getattr(network.get_submodule(family.backbone), "pooler", None)
    replace_module_(twin, family.backbone, Given(pooler))
    return twin


def _first_rows(value: object, rows: int, count: int) -> object:
    """Cut what has one entry a row, the attention mask for one, to the rows that joined."""
    if isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[0] == rows:
        return value[:count]
    return value
