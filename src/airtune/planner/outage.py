"""Links that carry nothing when a round begins: when each is back, and how long it is waited for.

Only links of measured traces have outages. The device is planned and priced with the rates that its
link has when it carries again, and the round lasts longer by what is waited until then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from airtune.cost import Prediction
from airtune.fleet import Fleet
from airtune.plan import Assignments, Floats, LinkState

_STEPS = 2048
"""Moments of the longest trace at which a link may be back; fewer where the trace has fewer slots."""


@dataclass(frozen=True, slots=True)
class Outages:
    """Links at a moment, with what is away at its next rates; columns of shape (devices,)."""

    links: LinkState
    up_s: Floats
    """Until the uplink carries; 0 = it does, inf = it never does."""
    down_s: Floats

    def waits(self, assignments: Assignments, cost: Prediction) -> Floats:
        """Return how much later each device of a plan finishes, shape (n,).

        The downlink is waited for at once, the uplink once the device has computed; a device with a
        cut needs both from its first step on.
        """
        up_s, down_s = self.up_s[assignments.device], self.down_s[assignments.device]
        done_s = np.where(assignments.cut > 0, 0.0, cost.download_s + cost.compute_s)
        begun_s = down_s + done_s
        return np.asarray(np.maximum(begun_s, up_s) - done_s, np.float64)


def outages_at(fleet: Fleet, number: int, begin_s: float) -> Outages:
    """Return the links of a round that begins at a moment of the traces.

    Args:
        fleet: devices and links.
        number: by which links are drawn.
        begin_s: where traces are read.
    """
    links = fleet.links_at(number, 0, begin_s)
    rates = {"up": links.up_capacity_bps.copy(), "down": links.down_capacity_bps.copy()}
    waits = {way: np.where(rate == 0.0, np.inf, 0.0) for way, rate in rates.items()}
    slot_s = fleet.slot_s or 1.0  # without a slot nothing changes, and no trace is there
    step_s = max(slot_s, fleet.trace_s / _STEPS)
    for step in range(1, math.ceil(fleet.trace_s / step_s) + 1):
        if not any(np.isinf(wait).any() for wait in waits.values()):
            break
        after_s = step * step_s
        later = fleet.links_at(number, round(after_s / slot_s), begin_s + after_s)
        for way, rate in (("up", later.up_capacity_bps), ("down", later.down_capacity_bps)):
            is_back = np.isinf(waits[way]) & (rate > 0.0)
            rates[way][is_back], waits[way][is_back] = rate[is_back], after_s
    links = replace(links, up_capacity_bps=rates["up"], down_capacity_bps=rates["down"])
    return Outages(links, waits["up"], waits["down"])
