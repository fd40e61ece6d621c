"""What an exported model weighs and how fast it is, beside the dense model.

Times are medians of passes on this machine, taken in turns so that a busy machine slows both alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from airtune.keys import derive_seed
from airtune.model.base import BaseModel
from airtune.model.generate import write_greedily
from airtune.model.images import image_tokens

BATCH, TOKENS, PASSES = 4, 64, 7
WRITTEN = 8
"""Tokens that a language model writes for its seconds a token."""


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
    token_s: float | None
    """Seconds for each token that a language model writes, one text at a time; None = it is none."""
    dense_token_s: float | None


def self_check(saved: nn.Module, base: BaseModel) -> SelfCheck:
    """Measure a saved model and the dense base; both read batches as every base does."""
    ids = _tokens(base)
    tokens = ids.shape[1] if base.frame is None else image_tokens(base.network.config)
    both = [saved, base.network]
    forward_s, dense_s = _times([partial(network, input_ids=ids) for network in both])
    token_s: float | None = None
    dense_token_s: float | None = None
    if base.shape.task == "causal-lm":
        taken_s = _times([partial(_written, network, ids) for network in both])
        token_s, dense_token_s = (each / WRITTEN for each in taken_s)
    return SelfCheck(
        count_parameters(saved),
        count_parameters(base.network),
        _bytes(saved),
        _bytes(base.network),
        forward_s,
        dense_s,
        BATCH,
        tokens,
        token_s,
        dense_token_s,
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
def _times(passes: list[Callable[[], object]]) -> list[float]:
    seconds: list[list[float]] = [[] for _ in passes]
    for _ in range(PASSES):
        for taken_s, run in zip(seconds, passes, strict=True):
            begin = time.perf_counter()
            run()
            taken_s.append(time.perf_counter() - begin)
    # the first pass of each warms up
    return [statistics.median(each[1:]) for each in seconds]


def _written(network: Any, ids: torch.Tensor) -> object:
    """Let a language model go on with half a row; it may not stop early."""
    prompt = ids[:1, : max(ids.shape[1] // 2, 1)]
    return write_greedily(network, prompt, tokens=WRITTEN, ends=None, pad=0, at_least=WRITTEN)


def count_parameters(network: nn.Module) -> int:
    """Return how many numbers a network holds; a tied weight counts once."""
    return sum(parameter.numel() for parameter in network.parameters())


def _bytes(network: nn.Module) -> int:
    return sum(item.numel() * item.element_size() for item in network.parameters())
