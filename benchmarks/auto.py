"""`auto` at plan level: rounds needed times seconds a round, against the other methods; its solver.

What lines cost in rounds is assumed here, the same for every method: no model is trained. K is that of
the mean pruning of a plan, its ranks and its codecs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from airtune.cost import known_shapes
from airtune.fleet import Fleet
from airtune.plan import (
    CodecRounds,
    CodecSpec,
    Measurements,
    Problem,
    PrunedRounds,
    RankRounds,
    Workload,
)

PRUNED = (0.0, 0.1, 0.2, 0.3, 0.5)
PRUNED_ROUNDS = (0.0, 0.02, 0.07, 0.16, 0.5)
"""ln of the rounds needed at these mean pruning rates, assumed."""
CODECS = {
    CodecSpec("fp16"): 0.0, CodecSpec("deadzone", step=0.75): 0.01,
    CodecSpec("deadzone", step=2.0): 0.05, CodecSpec("topk", keep=0.1, bits=4): 0.15,
}  # fmt: skip
"""The same of what crosses a cut."""
_SMALL = Workload(4, 128, 3, 8, ("q_proj", "v_proj"))
_TEXT = Workload(
    4, 256, 10, 8, ("q_proj", "v_proj"), dtype_bytes=2, base_bits=16, checkpointing=True,
    loss_chunk=256,
)  # fmt: skip
_IMAGES = Workload(16, 197, 10, 8, ("q_proj", "v_proj"), trains_head=True)
_SENTENCES = Workload(16, 128, 10, 8, ("q_proj", "v_proj"), trains_head=True)
CASES: dict[str, tuple[str, str, Workload]] = {
    "minilm-l6, phones": ("minilm-l6", "phones", _SENTENCES),
    "vit-base, cell-10": ("vit-base", "cell-10", _IMAGES),
    "qwen2.5-0.5b, cell-10": ("qwen2.5-0.5b", "cell-10", _TEXT),
    "qwen2.5-0.5b, jetson-80": ("qwen2.5-0.5b", "jetson-80", _TEXT),
    "llama-3.2-1b, orin-6-sites": ("llama-3.2-1b", "orin-6-sites", _TEXT),
    "roberta-base, jetson-80": ("roberta-base", "jetson-80", _SENTENCES),
    "llama-3.2-1b, mixed-20": ("llama-3.2-1b", "mixed-20", _TEXT),
    "qwen2.5-0.5b, mixed-20": ("qwen2.5-0.5b", "mixed-20", _TEXT),
    "vit-base, mixed-20": ("vit-base", "mixed-20", _IMAGES),
}


def assumed(rank: int) -> Measurements:
    """Return what lines cost in rounds, as this benchmark assumes it; losses are a fifth of that."""
    ranks = [(rank // 8, 0.3), (rank // 4, 0.15), (rank // 2, 0.05), (rank, 0.0)]
    pruning = zip(PRUNED, PRUNED_ROUNDS, strict=True)
    return Measurements(
        "assumed", "assumed, not measured",
        pruning=tuple(PrunedRounds(at, k, k / 5.0) for at, k in pruning),
        ranks=tuple(RankRounds(at, k, k / 5.0) for at, k in ranks),
        codecs=tuple(CodecRounds(1, codec, k, k / 5.0) for codec, k in CODECS.items()), cut=0.0,
        most_pruned=0.7,
    )  # fmt: skip


def problem_of(model: str, fleet: Fleet, workload: Workload) -> Problem:
    """Return what a method knows of a case before the first round."""
    shape = known_shapes()[model]
    names = tuple(linear.name for linear in shape.linears)
    targets = tuple(each for each in names if each in workload.lora_targets) or names[:1]
    return Problem(
        shape, fleet.profiles(np.full(len(fleet), 200)), replace(workload, lora_targets=targets),
        rounds=100, seed=0, server_flops_per_s=fleet.server.flops_per_s,
        server_memory_bytes=fleet.server.memory_bytes, measurements=assumed(workload.rank),
    )  # fmt: skip
