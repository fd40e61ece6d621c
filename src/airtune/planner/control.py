"""What the controls cost, which federate nothing: devices that train alone or not at all.

untuned     one round in which nothing is trained
local-only  every device computes, away or not, and nothing crosses
pooled      the server makes all of the fleet's steps, and the devices do nothing
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from airtune.cost import Prediction, energy_j, train_flops
from airtune.plan import Assignments, Bools, Problem, whole_model
from airtune.run import Chosen

_ALONE = "local-only"
_SAID = {
    "untuned": "nothing is trained; its one round evaluates the base model",
    _ALONE: "every device trains by itself; nothing is sent over its link",
    "pooled": "the server trains on all data by itself; nothing is sent over a device's link",
}


def there(chosen: Chosen, available: Bools) -> Bools:
    """Return who takes part; a device that trains by itself needs no link."""
    is_alone = chosen.is_control and chosen.method.name == _ALONE
    return np.ones_like(available) if is_alone else available


def off_the_network(
    chosen: Chosen, problem: Problem, assignments: Assignments, cost: Prediction
) -> Prediction:
    """Return a control's cost: what it would be in a federation, less what is not done."""
    nothing = np.zeros(len(assignments))
    is_alone = chosen.method.name == _ALONE
    compute_s = cost.compute_s if is_alone else nothing
    return replace(
        cost,
        download_s=nothing,
        compute_s=compute_s,
        upload_s=nothing,
        finish_s=compute_s,
        download_bytes=nothing,
        upload_bytes=nothing,
        flops=cost.flops if is_alone else nothing,
        peak_bytes=cost.peak_bytes if is_alone else nothing,
        energy_j=energy_j(problem, assignments.device, compute_s=compute_s, upload_s=nothing),
    )


def server_s(chosen: Chosen, problem: Problem) -> float:
    """Return the seconds of a round that the server computes for a control by itself."""
    if chosen.method.name != "pooled":
        return 0.0
    steps = problem.workload.local_steps * len(problem.devices)
    assignments = whole_model(
        np.zeros(1, np.int64), rank=problem.workload.rank, local_steps=steps, share=np.ones(1)
    )
    flops = train_flops(problem.shape, problem.workload, assignments)
    return float(flops[0]) / problem.server_flops_per_s


def problem_of_control(chosen: Chosen, problem: Problem) -> Problem:
    """Return the problem without deadline and cap, which bind nobody who sends nothing."""
    rounds = 1 if chosen.method.name == "untuned" else problem.rounds
    return replace(
        problem, rounds=rounds, deadline_s=None, device_bytes_per_month=None, joules_per_round=None
    )


def control_lines(chosen: Chosen) -> list[str]:
    """Return in words what a control does instead of a federation; nothing for a method."""
    return [f"{chosen.label}: {_SAID[chosen.method.name]}"] if chosen.is_control else []
