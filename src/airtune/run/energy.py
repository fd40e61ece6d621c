"""Whether a fleet can keep a limit of energy at all, before anything is measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from airtune.cost import least_j
from airtune.engine.limits import refuse_energy
from airtune.plan import CodecSpec
from airtune.run.build import Pieces
from airtune.run.method import Chosen


def check_energy(pieces: Pieces, chosen: Chosen) -> None:
    """Refuse a limit that no device keeps, whatever the method decides, with the first round's links.

    What the method will tell the devices takes more than that least, so a limit above it may still
    be refused in the first round.

    Raises:
        InfeasibleError: with the least energy that a device could do with, and the device.
    """
    problem, fleet, method = pieces.problem, pieces.assets.fleet, chosen.method
    if problem.joules_per_round is None or chosen.is_control:
        return
    if method.paces or "steps" in method.wants:
        problem = replace(problem, workload=replace(problem.workload, local_steps=1))
    menu = (CodecSpec(), *(section.spec() for section in pieces.recipe.split.codecs))
    least = least_j(
        replace(problem, work=method.work),
        menu if method.may_cut else (),
        prunes=not method.may_cut or bool({"pruning", "sensitivity"} & method.wants),
        links=fleet.links_at(0, 0, 0.0),
        flops_per_s=fleet.flops_at(0),
    )
    refuse_energy(problem, least, np.flatnonzero(problem.devices.samples > 0))
