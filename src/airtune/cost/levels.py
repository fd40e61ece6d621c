"""The ladder: the pruning levels of a model that are whole groups and whole channels.

A method that decides on a pruned fraction picks a level of it; heads and FFN channels go in the order
of `path`, so that one number orders the levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.cost.flops import train_flops
from airtune.cost.memory import peak_memory
from airtune.cost.path import pruning_path
from airtune.cost.payload import upload_bytes
from airtune.plan import Assignments, Floats, ModelShape, Sensitivity, Workload

MOST_LEVELS = 64


@dataclass(frozen=True, slots=True)
class Ladder:
    """A model's pruning levels from dense to the heaviest, in columns of shape (levels,)."""

    prune_heads: Floats
    prune_ffn: Floats
    pruned: Floats
    """Fraction of the blocks' linear parameters removed; rises strictly from 0."""
    flops: Floats
    """Of one device's local steps in a round."""
    upload_bytes: Floats
    peak_bytes: Floats

    def __len__(self) -> int:
        return int(self.pruned.shape[0])


def ladder(shape: ModelShape, workload: Workload, sensitivity: Sensitivity | None = None) -> Ladder:
    """Return the levels of a model, priced for a workload at its own rank and local steps.

    A level is a step of the order in which groups and channels go, or as many as keep the levels at
    64. At least one group and one step of channels stay. FLOPs, bytes and memory never rise along
    the ladder.

    Args:
        shape: The unpruned model.
        workload: What training it costs.
        sensitivity: What heads and channels cost; None = what is typical.

    >>> from airtune.cost.shapes import llama_like
    >>> shape = llama_like("llama", blocks=2, width=8, heads=4, kv_groups=2, head_dim=2, ffn=4,
    ...                    vocab=10, tied=True)
    >>> work = Workload(1, 8, local_steps=1, rank=2, lora_targets=("q_proj",))
    >>> ladder(shape, work).pruned.round(3).tolist()
    [0.0, 0.083, 0.417, 0.5, 0.583]
    """
    path = pruning_path(shape, sensitivity)
    steps = len(path.pruned)
    level = np.unique(np.rint(np.linspace(0, steps - 1, min(steps, MOST_LEVELS))).astype(np.int64))
    heads = 1.0 - path.groups[level] / shape.kv_groups
    ffn = 1.0 - path.channels[level] / shape.ffn
    count = level.shape[0]
    plan = Assignments(
        device=np.arange(count),
        prune_heads=heads,
        prune_ffn=ffn,
        rank=np.full(count, workload.rank),
        share=np.ones(count),
        local_steps=np.full(count, workload.local_steps),
        cut=np.zeros(count, np.int64),
        codec_index=np.zeros(count, np.int64),
    )
    return Ladder(
        prune_heads=heads,
        prune_ffn=ffn,
        pruned=path.pruned[level],
        flops=train_flops(shape, workload, plan),
        upload_bytes=upload_bytes(shape, workload, plan),
        peak_bytes=peak_memory(shape, workload, plan).total,
    )
