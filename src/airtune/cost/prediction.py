"""Seconds, bytes and joules of a round: one function for planner, deciders and virtual clock.

    finish = download + compute + upload,    round = the last finish

The global adapters are broadcast, so every device receives the whole link's downlink rate; the
uplink is divided by the plan's shares. A device computes at its achieved training speed. Energy is
that of computing and sending; receiving is not charged. Devices with a cut meet at every step, and
the server's time is in their finish (`airtune.cost.delay`).

Expected error: FLOPs and bytes are exact, seconds are as good as the speeds and links given; step
time with a speed from `airtune.cost.speed` is within 10 % (`python -m benchmarks predict`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from airtune.cost.delay import split_times, transfer_s
from airtune.cost.energy import energy_j
from airtune.cost.flops import train_flops
from airtune.cost.memory import peak_memory
from airtune.cost.payload import broadcast_bytes, upload_bytes
from airtune.cost.split import split_cost
from airtune.errors import MethodError
from airtune.fleet.rates import downlink_bps, uplink_bps
from airtune.plan import Assignments, Floats, LinkState, Problem, RoundColumns


@dataclass(frozen=True, slots=True)
class Prediction(RoundColumns):
    """What a round costs each device of a plan, in columns of shape (n,).

    A device without any rate has infinite seconds.
    """

    energy_j: Floats
    """NaN where the powers are hidden."""

    @property
    def round_s(self) -> float:
        """Seconds until the last device's update has arrived; 0 for an empty plan."""
        return float(np.max(self.finish_s, initial=0.0))


def predict(
    problem: Problem, assignments: Assignments, *, links: LinkState, flops_per_s: Floats
) -> Prediction:
    """Return what each device of a plan will take in a round that starts with these links.

    Args:
        problem: Model, workload and devices.
        assignments: The plan, n devices.
        links: Links of the whole fleet.
        flops_per_s: Achieved training speeds of the whole fleet, shape (devices,).

    Returns:
        Columns of shape (n,), in the order of the plan.

    Raises:
        MethodError: if the speeds do not cover the fleet.
        ModelError: if a LoRA target is no layer of this family.
    """
    if flops_per_s.shape != (len(problem.devices),):
        raise MethodError(
            f"speeds must have one value a device of the fleet, got shape {flops_per_s.shape} "
            f"for {len(problem.devices)} devices"
        )
    found = _whole(problem, assignments, links=links, flops_per_s=flops_per_s)
    is_cut = assignments.cut > 0
    if is_cut.any():
        split = _split(
            problem, assignments, links=links, flops_per_s=flops_per_s, broadcast_s=found.download_s
        )
        columns = {
            column.name: np.where(is_cut, getattr(split, column.name), getattr(found, column.name))
            for column in fields(Prediction)
        }
        found = Prediction(**columns)
    ends = found.finish_s[np.isfinite(found.finish_s)]
    energy = energy_j(
        problem,
        assignments.device,
        compute_s=found.compute_s,
        upload_s=found.upload_s,
        download_s=found.download_s,
        round_s=float(np.max(ends, initial=0.0)),
    )
    return replace(found, energy_j=energy)


def _whole(
    problem: Problem, assignments: Assignments, *, links: LinkState, flops_per_s: Floats
) -> Prediction:
    """Return the prediction of devices that train the whole model, each for itself."""
    shape, workload, device = problem.shape, problem.workload, assignments.device
    down = np.full(len(assignments), broadcast_bytes(shape, workload, assignments))
    up = upload_bytes(shape, workload, assignments)
    flops = train_flops(shape, workload, assignments)
    download_s = transfer_s(down, downlink_bps(links, device))
    compute_s = flops / flops_per_s[device]
    upload_s = transfer_s(up, uplink_bps(links, assignments.share, device))
    return Prediction(
        download_s=download_s,
        compute_s=compute_s,
        upload_s=upload_s,
        finish_s=download_s + compute_s + upload_s,
        download_bytes=down,
        upload_bytes=up,
        flops=flops,
        peak_bytes=peak_memory(shape, workload, assignments).total,
        energy_j=np.zeros(len(assignments)),
    )


def _split(
    problem: Problem,
    assignments: Assignments,
    *,
    links: LinkState,
    flops_per_s: Floats,
    broadcast_s: Floats,
) -> Prediction:
    """Return the prediction of devices that meet at their cuts; sums over the round's steps."""
    cost = split_cost(problem, assignments)
    times = split_times(
        problem, assignments, cost, links=links, flops_per_s=flops_per_s, broadcast_s=broadcast_s
    )
    steps = assignments.local_steps
    compute_s = steps * (times.forward_s + times.backward_s)
    upload_s = steps * times.up_s + times.send_s
    return Prediction(
        download_s=times.fetch_s + steps * times.down_s,
        compute_s=compute_s,
        upload_s=upload_s,
        finish_s=times.finish_s,
        download_bytes=cost.adapter_down_bytes + steps * cost.gradient_bytes,
        upload_bytes=cost.adapter_up_bytes + steps * cost.up_bytes,
        flops=steps * (cost.fresh * cost.forward_flops + cost.backward_flops),
        peak_bytes=cost.device_peak_bytes,
        energy_j=np.zeros(len(assignments)),
    )
