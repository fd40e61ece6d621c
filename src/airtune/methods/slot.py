"""The division of one slot for what is still to be sent."""

from __future__ import annotations

import numpy as np

from airtune.plan import Floats, Ints, LinkState, RoundPlan
from airtune.solve import Spectrum, curves_of, divide_spectrum, silent
from airtune.units import BITS_PER_BYTE


def divide_slot(
    device: Ints, links: LinkState, remaining_bytes: Floats, how: Spectrum = "exact"
) -> Floats:
    """Return the shares, shape (n,), with which the slowest has sent what remains soonest.

    A device that cannot send in this slot, or has nothing left to send, gets no share.

    Args:
        device: indices into the fleet, shape (n,).
        links: the links in this slot.
        remaining_bytes: what each device still has to send, shape (n,).
        how: the rule of the division.
    """
    share = np.zeros(device.shape)
    rows = np.flatnonzero(~silent(links, device) & (remaining_bytes > 0.0))
    if rows.size:
        bits = remaining_bytes[rows] * BITS_PER_BYTE
        found = divide_spectrum(curves_of(links, device[rows]), np.zeros(rows.size), bits, how)
        share[rows] = np.minimum(found.share, 1.0)
    return share


def keep_or_divide(plan: RoundPlan, links: LinkState, remaining_bytes: Floats) -> Floats:
    """Return the plan's shares while they serve everybody who can send, else those of `divide_slot`.

    A device in an outage gets no share of a plan. Once it can send, the links are divided anew.
    """
    assignments = plan.assignments
    left_out = (
        (assignments.share == 0.0) & (remaining_bytes > 0.0) & ~silent(links, assignments.device)
    )
    return (
        divide_slot(assignments.device, links, remaining_bytes)
        if left_out.any()
        else assignments.share
    )
