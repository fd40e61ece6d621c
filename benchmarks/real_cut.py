"""A real language model cut in two: what coding its activations adds to the loss, at how many bits.

The first blocks run, what crosses is coded and decoded, the other blocks go on. Nothing is tuned. The
texts are the first six of alpaca_1k.jsonl and of gsm8k_train.jsonl, each six coded as one batch; prompts
are masked. Six texts score a few hundred tokens: differences of half a percent mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from airtune.data import FederatedData
from airtune.keys import generator
from airtune.model.base import BaseModel
from airtune.model.batch import IGNORED, Batch
from airtune.plan import CodecSpec
from airtune.recipe.schema import SplitSection
from airtune.work.batches import collate_examples
from airtune.work.wire import cross, packed, unpacked
from benchmarks.figure import Figure, at_most

TEXTS, TOKENS, CUTS = 6, 256, (2, 8, 20)
MENU = tuple(section.spec() for section in SplitSection().codecs)
"""Of a recipe that names none: what the goals are held against."""
SHOWN = (CodecSpec("deadzone", step=0.75), CodecSpec("topk", keep=0.3, bits=4))
MOST_ADDED, MOST_BITS = 0.01, 2.7


@dataclass(frozen=True, slots=True)
class CutLoss:
    """What a codec did at one cut to the texts of one source."""

    added: float
    """Of the loss without a codec."""
    bits: float
    """An entry that crosses."""


def coded_cuts(base: BaseModel, sources: Mapping[str, FederatedData]) -> Iterator[Figure]:
    """Yield the most loss that each codec adds at each cut, over the sources, and its bits an entry.

    A codec of the menu that takes more bits than the goal allows is held to the same loss.
    """
    batches = {
        name: collate_examples(
            data.devices[0].train, range(TEXTS), tokens=TOKENS, device=base.device
        )
        for name, data in sources.items()
    }
    plain = {name: _loss(base.network, batch) for name, batch in batches.items()}
    for spec in (*MENU, *SHOWN):
        for cut in CUTS:
            found = {
                name: _through(base, batch, cut, spec, plain[name])
                for name, batch in batches.items()
            }
            slug = f"cut_{cut}_{spec.label.replace(' ', '_')}"
            each = ", ".join(
                f"{name} {one.added:+.4f} at {one.bits:.2f} bits" for name, one in found.items()
            )
            worst = max(one.added for one in found.values())
            name = f"real.loss_added_{slug}"
            if spec in MENU:
                yield at_most(name, worst, MOST_ADDED, f"untuned, the worst of {each}")
            else:
                yield Figure(name, worst, "none", True, f"untuned, the worst of {each}")


def _through(base: BaseModel, batch: Batch, cut: int, spec: CodecSpec, plain: float) -> CutLoss:
    """Return what coding what leaves a block does."""
    bits = []

    def code(_module: nn.Module, _given: object, hidden: torch.Tensor) -> torch.Tensor:
        sent = packed(hidden, batch.attention_mask)
        crossed = cross(sent, spec, generator(0, "coded cut", cut))
        bits.append(8 * crossed.payload_bytes / sent.size)
        return unpacked(crossed.values, batch.attention_mask, hidden)

    block = base.family.block_list(base.network)[cut - 1]
    handle = block.register_forward_hook(code)
    try:
        return CutLoss(_loss(base.network, batch) / plain - 1.0, bits[0])
    finally:
        handle.remove()


@torch.no_grad()
def _loss(network: nn.Module, batch: Batch) -> float:
    """Return the mean loss of the scored tokens."""
    logits = network(**batch.inputs, use_cache=False).logits[:, :-1]
    if batch.labels is None:
        raise SystemExit("texts without labels have no loss")
    wanted = batch.labels[:, 1:]
    return float(cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED))
