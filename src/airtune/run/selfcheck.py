"""What an exported model really is: its answers, size and speed beside the dense model's.

The folder is loaded as anybody would load it, by transformers' Auto classes. Times are medians of
forward passes on this machine, taken in turns so that a busy machine slows both alike.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from airtune.errors import ModelError
from airtune.keys import derive_seed
from airtune.model.base import BaseModel, auto_class
from airtune.model.images import image_tokens, read_batches_

BATCH, TOKENS, PASSES = 4, 64, 7
TOLERANCE, COARSE_TOLERANCE = 1e-3, 0.2
"""Largest difference of logits, relative to their spread, that rounding explains: in float32, and in
16 bits, where merging rounds the adapters as well."""


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """A saved model beside the one in memory and the dense base."""

    logit_difference: float
    """Largest difference to the model in memory, relative to the spread of the logits."""
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


def self_check(folder: Path, tuned: nn.Module, base: BaseModel) -> SelfCheck:
    """Load a saved model plainly and compare it.

    Args:
        folder: what was written.
        tuned: the same model in memory, with its adapters.
        base: the dense base.

    Raises:
        ModelError: if the saved model answers differently.
    """
    saved = auto_class(base.shape).from_pretrained(str(folder)).eval()
    if base.frame is not None:
        read_batches_(saved)
    ids = _tokens(base)
    with torch.no_grad():
        here = tuned(input_ids=ids).logits.float()
        there = saved(input_ids=ids).logits.float()
    tokens = ids.shape[1] if base.frame is None else image_tokens(base.network.config)
    spread = max(float(here.std()), 1e-6)
    difference = float((here - there).abs().max()) / spread
    is_single = next(saved.parameters()).dtype == torch.float32
    tolerance = TOLERANCE if is_single else COARSE_TOLERANCE
    if not difference <= tolerance:
        raise ModelError(
            "the model as saved answers differently from the one that was tuned, so it was not "
            f"kept: logits are off by {difference:.2g} of their spread, {tolerance:g} is rounding; "
            "this is a fault of airtune: report it, and export the adapter if the run has one"
        )
    forward_s, dense_s = _times([saved, base.network], ids)
    return SelfCheck(
        difference, _count(saved), _count(base.network), _bytes(saved), _bytes(base.network),
        forward_s, dense_s, BATCH, tokens,
    )  # fmt: skip


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
