"""What an exported model weighs and how fast it is, beside the dense model.

Times are medians of forward passes on this machine, taken in turns so that a busy machine slows
both alike.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn

from airtune.keys import derive_seed
from airtune.model.base import BaseModel
from airtune.model.images import image_tokens

BATCH, TOKENS, PASSES = 4, 64, 7


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """A saved model beside the dense base."""

    parameters: int
    dense_parameters: int
    tensor_bytes: int
    """Bytes of the parameters, each once: what the weights take when loaded. Running the model takes
    more: activations, and a language model's keys and values, are not in it."""
    dense_tensor_bytes: int
    """The same of the dense base."""
    forward_s: float
    dense_forward_s: float
    batch: int
    tokens: int


def self_check(saved: nn.Module, base: BaseModel) -> SelfCheck:
    """Measure a saved model and the dense base; both read batches as every base does."""
    ids = _tokens(base)
    tokens = ids.shape[1] if base.frame is None else image_tokens(base.network.config)
    forward_s, dense_s = _times([saved, base.network], ids)
    return SelfCheck(
        _count(saved),
        _count(base.network),
        _bytes(saved),
        _bytes(base.network),
        forward_s,
        dense_s,
        BATCH,
        tokens,
    )


def _tokens(base: BaseModel) -> torch.Tensor:
    """Return random tokens, or random images where the model reads those."""
    limit = int(getattr(base.network.config, "max_position_embeddings", TOKENS))
    stream = torch.Generator().manual_seed(derive_seed(0, "self-check"))
    if base.frame is not None:
        pixels = (BATCH, base.frame.channels, base.frame.size, base.frame.size)
        return torch.randn(pixels, generator=stream)
    size = (BATCH, min(TOKENS, limit // 2))
    return torch.randint(3, base.shape.vocab, size, generator=stream)


@torch.no_grad()
def _times(networks: list[nn.Module], ids: torch.Tensor) -> list[float]:
    seconds: list[list[float]] = [[] for _ in networks]
    for _ in range(PASSES):
        for place, network in enumerate(networks):
            begin = time.perf_counter()
            network(input_ids=ids)
            seconds[place].append(time.perf_counter() - begin)
    # the first pass of each warms up
    return [statistics.median(each[1:]) for each in seconds]


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _bytes(network: nn.Module) -> int:
    return sum(item.numel() * item.element_size() for item in network.parameters())
