"""Assignments of methods that see no channel: every link is divided equally."""

from __future__ import annotations

import numpy as np

from airtune.methods.seen import even_shares
from airtune.plan import Assignments, Floats, Ints, Problem


def equal_links(
    problem: Problem, device: Ints, *, prune_heads: Floats, prune_ffn: Floats, rank: Ints
) -> Assignments:
    """Return assignments of whole devices with equal shares and the recipe's local steps.

    Args:
        problem: what stands before the first round.
        device: who takes part, shape (n,).
        prune_heads: fraction of key-value groups removed, shape (n,).
        prune_ffn: fraction of FFN channels removed, shape (n,).
        rank: of the adapters, shape (n,).
    """
    devices, count = problem.devices, device.shape[0]
    alone = None if devices.dedicated is None else devices.dedicated[device]
    return Assignments(
        device=device,
        prune_heads=prune_heads,
        prune_ffn=prune_ffn,
        rank=rank,
        share=even_shares(devices.link[device], alone),
        local_steps=np.full(count, problem.workload.local_steps),
        cut=np.zeros(count, np.int64),
        codec_index=np.zeros(count, np.int64),
    )
