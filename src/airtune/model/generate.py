"""Generation with a language model: greedy, whatever the model's own generation config says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig


@torch.no_grad()
def write_greedily(
    network: Any,
    ids: torch.Tensor,
    *,
    tokens: int,
    ends: int | Sequence[int] | None,
    pad: int | None,
    at_least: int = 0,
) -> torch.Tensor:
    """Return what a language model writes after prompts of one length, (prompts, tokens).

    Beams, penalties, several answers a prompt and the like, which a base may have as its own default,
    do not count.

    Args:
        network: a causal language model of transformers.
        ids: prompts, (prompts, length).
        tokens: most of them.
        ends: tokens that end an answer; None = nothing does.
        pad: fills up after one; None = not needed.
        at_least: tokens that are written before one can end.
    """
    own = network.generation_config
    network.generation_config = GenerationConfig()
    try:
        output: torch.Tensor = network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=tokens,
            min_new_tokens=at_least,
            eos_token_id=ends,
            pad_token_id=pad,
        )
    finally:
        network.generation_config = own
    return output[:, ids.shape[1] :]
