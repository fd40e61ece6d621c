"""A real language model cut in two: what coding its activations adds to the loss, at how many bits.

The first blocks run, what crosses is coded and decoded, the other blocks go on. Nothing is tuned. The
texts are the first six of alpaca_1k.jsonl, coded as one batch; prompts are masked.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from airtune.data import FederatedData
from airtune.keys import generator
from airtune.model.base import BaseModel
from airtune.model.batch import IGNORED, Batch
from airtune.plan import CodecSpec
from airtune.work.batches import collate_examples
from airtune.work.wire import cross, packed, unpacked
from benchmarks.figure import Figure, at_most

TEXTS, TOKENS, CUTS = 6, 256, (2, 8, 20)
HELD = CodecSpec("deadzone", step=0.6)
"""What the goals are held against; the others are shown."""
SHOWN = (CodecSpec("deadzone", step=0.75), CodecSpec("topk", keep=0.3, bits=4))
MOST_ADDED, MOST_BITS = 0.01, 2.7


def coded_cuts(base: BaseModel, data: FederatedData) -> Iterator[Figure]:
    """Yield the loss that codecs add at each cut, relative to none, and their bits an entry."""
    examples = data.devices[0].train
    batch = collate_examples(examples, range(TEXTS), tokens=TOKENS, device=base.device)
    plain = _loss(base.network, batch)
    where = f"{int(batch.attention_mask.sum())} tokens, untuned, loss {plain:.3f} uncoded"
    for cut in CUTS:
        for spec in (HELD, *SHOWN):
            added, bits = _through(base, batch, cut, spec, plain)
            slug = f"cut_{cut}_{spec.label.replace(' ', '_')}"
            if spec == HELD:
                yield at_most(f"real.loss_added_{slug}", added, MOST_ADDED, where)
                yield at_most(f"real.bits_{slug}", bits, MOST_BITS, "bits an entry that crosses")
            else:
                yield Figure(f"real.loss_added_{slug}", added, "none", True, where)
                yield Figure(f"real.bits_{slug}", bits, "none", True, "bits an entry that crosses")


def _through(
    base: BaseModel, batch: Batch, cut: int, spec: CodecSpec, plain: float
) -> tuple[float, float]:
    """Return the loss added by coding what leaves a block, and the bits an entry."""
    bits = []

    def code(_module: nn.Module, _given: object, hidden: torch.Tensor) -> torch.Tensor:
        sent = packed(hidden, batch.attention_mask)
        crossed = cross(sent, spec, generator(0, "coded cut", cut))
        bits.append(8 * crossed.payload_bytes / sent.size)
        return unpacked(crossed.values, batch.attention_mask, hidden)

    block = base.family.block_list(base.network)[cut - 1]
    handle = block.register_forward_hook(code)
    try:
        return _loss(base.network, batch) / plain - 1.0, bits[0]
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
