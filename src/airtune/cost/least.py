"""The least energy that a round takes of a device: as if it were alone.

A device that is alone has its link to itself, and waits for no other device and for no server. So
nothing that a method decides for the others makes its round cheaper than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from airtune.cost.energy import energy_j
from airtune.cost.levels import ladder
from airtune.cost.prediction import predict
from airtune.plan import Assignments, CodecSpec, Floats, LinkState, Problem, whole_model


def alone_j(
    problem: Problem, assignments: Assignments, *, links: LinkState, flops_per_s: Floats
) -> Floats:
    """Return the joules of each device of a plan as if it were alone.

    Args:
        problem: its profiles hold the powers.
        assignments: n devices; shares are not read.
        links: of the whole fleet when the round begins.
        flops_per_s: speeds of the whole fleet, shape (devices,).

    Returns:
        Shape (n,); NaN where a power or a speed is hidden, infinite where a link carries nothing.
    """
    # one after the other, each device has its link to itself
    by_turns = replace(problem, work=replace(problem.work, server="sequential"))
    with_link = replace(assignments, share=np.ones(len(assignments)))
    cost = predict(by_turns, with_link, links=links, flops_per_s=flops_per_s)
    return energy_j(
        problem,
        assignments.device,
        compute_s=cost.compute_s,
        upload_s=cost.upload_s,
        download_s=cost.download_s,
    )


def least_j(
    problem: Problem,
    codecs: Sequence[CodecSpec],
    *,
    prunes: bool,
    links: LinkState,
    flops_per_s: Floats,
) -> Floats:
    """Return the least joules of each device, whatever is pruned or cut, at rank 1.

    Args:
        problem: its workload says how many local steps a round has.
        codecs: of what crosses a cut; none = nothing is cut.
        prunes: the model may be pruned, as far as can be.
        links: of the whole fleet when the round begins.
        flops_per_s: speeds of the whole fleet, shape (devices,).

    Returns:
        Shape (devices,), as `alone_j` says.
    """
    everybody = np.arange(len(problem.devices))
    whole = whole_model(
        everybody, rank=1, local_steps=problem.workload.local_steps, share=np.ones(len(everybody))
    )
    levels = ladder(problem.shape, problem.workload, problem.sensitivity)
    level = -1 if prunes else 0
    pruned = replace(
        whole,
        prune_heads=np.full(len(everybody), levels.prune_heads[level]),
        prune_ffn=np.full(len(everybody), levels.prune_ffn[level]),
    )
    tried = [pruned] + [
        replace(whole, cut=np.full(len(everybody), cut), codecs=(codec,))
        for cut in range(1, problem.shape.blocks)
        for codec in codecs
    ]
    found = [alone_j(problem, told, links=links, flops_per_s=flops_per_s) for told in tried]
    return np.asarray(np.min(found, axis=0), np.float64)
