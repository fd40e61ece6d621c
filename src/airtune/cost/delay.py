"""How long a split round takes: steps between two barriers, or one device after the other.

With a server that serves all at once, a step is

    max_i (forward_i + up_i) + server + max_i (down_i + backward_i)

and a round is its steps with the adapters' exchange before the first and after the last: a device
that has its adapters early begins early, and one that is done sends at once. The uplink is divided
by the plan's shares. Gradients differ by device, so the downlink is divided too: on a shared link
all arrive together, after the sum of what each would take alone, and not before the broadcast to
devices that train the whole model is over; a dedicated link carries one.
A sequential server takes the sum over devices, each with its link to itself.

Source: Split Fine-Tuning for Large Language Models in Wireless Networks (arXiv 2501.09237);
reconstructed. The division of the downlink and the overlap with the exchange are this project's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.cost.split import SplitCost
from airtune.fleet.rates import downlink_bps, uplink_bps
from airtune.plan import Assignments, Bools, Floats, Ints, LinkState, Problem
from airtune.units import BITS_PER_BYTE


@dataclass(frozen=True, slots=True)
class SplitTimes:
    """Seconds of a split in columns of shape (n,), a local step unless said otherwise."""

    forward_s: Floats
    up_s: Floats
    server_s: Floats
    """Of the server's pass over this device's samples; a parallel server's pass takes the sum."""
    down_s: Floats
    """With all devices of the plan taking part in the step."""
    backward_s: Floats
    fetch_s: Floats
    """A round: until the adapters have come."""
    send_s: Floats
    """A round: the adapters' way back."""
    finish_s: Floats
    """Seconds after the start of the round until the device's adapters are back."""


def turn_share(problem: Problem, share: Floats) -> Floats:
    """Return the share of its link a device has while it sends: all of it where turns are taken."""
    return np.ones(share.shape) if problem.work.server == "sequential" else share


def gradient_bps(links: LinkState, device: Ints, remaining_bytes: Floats) -> Floats:
    """Return the rates at which gradients come down, so that all on a shared link end together.

    Air time goes in proportion to what each would still take alone.

    Args:
        links: The links in one slot.
        device: Indices into the fleet, shape (n,).
        remaining_bytes: What each has still to receive, shape (n,).

    Returns:
        Bit per second, shape (n,); 0 where nothing remains on a shared link.
    """
    rate = downlink_bps(links, device)
    alone_s = transfer_s(remaining_bytes, rate)
    together_s = _together_s(links, device, alone_s)
    part = np.divide(
        alone_s, together_s, out=np.zeros(rate.shape), where=(together_s > 0) & (alone_s < np.inf)
    )
    return rate * np.where(links.dedicated(device), 1.0, part)


def split_times(
    problem: Problem,
    assignments: Assignments,
    cost: SplitCost,
    *,
    links: LinkState,
    flops_per_s: Floats,
    broadcast_s: Floats | None = None,
) -> SplitTimes:
    """Return what a round through these cuts takes in a slot's links.

    Args:
        problem: Its `work` says how the server serves.
        assignments: n devices; rows without a cut take no time here.
        cost: `split_cost` of them.
        links: Of the whole fleet.
        flops_per_s: Achieved training speeds of the whole fleet, shape (devices,).
        broadcast_s: How long each row without a cut receives adapters; the others' is not read. None =
            nobody does.
    """
    device, speed = assignments.device, flops_per_s[assignments.device]
    up_bps = uplink_bps(links, turn_share(problem, assignments.share), device)
    broadcast_bps = downlink_bps(links, device)
    takes_turns = problem.work.server == "sequential"
    alone_s = transfer_s(cost.gradient_bytes, broadcast_bps)
    times = SplitTimes(
        forward_s=cost.fresh * cost.forward_flops / speed,
        up_s=transfer_s(cost.up_bytes, up_bps),
        server_s=cost.server_flops / problem.server_flops_per_s,
        down_s=alone_s if takes_turns else _together_s(links, device, alone_s),
        backward_s=cost.backward_flops / speed,
        fetch_s=transfer_s(cost.adapter_down_bytes, broadcast_bps),
        send_s=transfer_s(cost.adapter_up_bytes, up_bps),
        finish_s=np.zeros(len(assignments)),
    )
    is_cut = assignments.cut > 0
    if not is_cut.any():
        return times
    if takes_turns:
        turn_s = (
            times.fetch_s
            + times.send_s
            + assignments.local_steps
            * (times.forward_s + times.up_s + times.server_s + times.down_s + times.backward_s)
        )
        turns = is_cut & np.isfinite(turn_s)
        times.finish_s[turns] = np.cumsum(turn_s[turns])
        times.finish_s[is_cut & ~turns] = np.inf
    else:
        listens_s = (
            np.zeros(len(device)) if broadcast_s is None else np.where(is_cut, 0.0, broadcast_s)
        )
        free_s = _free_s(links, device, listens_s)
        _meet(times, assignments, is_cut, alone_s=alone_s, links=links, free_s=free_s)
    return times


def _meet(
    times: SplitTimes,
    assignments: Assignments,
    is_cut: Bools,
    *,
    alone_s: Floats,
    links: LinkState,
    free_s: Floats,
) -> None:
    """Let all devices take their steps between barriers; writes into `times.finish_s`.

    A device whose link carries nothing is not waited for.
    """
    arrives_s = times.forward_s + times.up_s
    reaches = is_cut & np.isfinite(times.fetch_s + arrives_s + alone_s)
    times.finish_s[is_cut & ~reaches] = np.inf
    if not reaches.any():
        return
    now_s = float(np.max((times.fetch_s + arrives_s)[reaches])) - float(np.max(arrives_s[reaches]))
    done = 0
    for steps in np.unique(assignments.local_steps[reaches]):
        here = reaches & (assignments.local_steps > done)
        down_s = _together_s(links, assignments.device, np.where(here, alone_s, 0.0))
        back_s = down_s + times.backward_s
        longest_s = float(np.max(back_s[here]))
        sent_s = float(np.max(arrives_s[here])) + float(np.sum(times.server_s[here]))
        if done == 0:  # of all gradients only the first may meet the broadcast
            first_s = back_s + np.maximum(free_s - (now_s + sent_s), 0.0)
            now_s += float(np.max(first_s[here])) - longest_s
            back_s = first_s if steps == 1 else back_s
        now_s += (int(steps) - done) * (sent_s + longest_s)
        last = here & (assignments.local_steps == steps)
        early_s = float(np.max(back_s[here])) - back_s
        times.finish_s[last] = (now_s - early_s + times.send_s)[last]
        done = int(steps)


def _free_s(links: LinkState, device: Ints, listens_s: Floats) -> Floats:
    """Return when the broadcast is over on each device's link; 0 on a dedicated one, (n,)."""
    ends_s = np.zeros(len(links.specs))
    heard = np.isfinite(listens_s) & ~links.dedicated(device)
    np.maximum.at(ends_s, links.link[device[heard]], listens_s[heard])
    return ends_s[links.link[device]]


def transfer_s(size_bytes: Floats, rate_bps: Floats) -> Floats:
    """Return the seconds of a transfer; infinite where there is something to send and no rate.

    >>> transfer_s(np.array([10.0, 10.0, 0.0]), np.array([80.0, 0.0, 0.0])).tolist()
    [1.0, inf, 0.0]
    """
    seconds = np.where(size_bytes > 0.0, np.inf, 0.0)
    bits = size_bytes * BITS_PER_BYTE
    return np.asarray(np.divide(bits, rate_bps, out=seconds, where=rate_bps > 0.0), np.float64)


def _together_s(links: LinkState, device: Ints, alone_s: Floats) -> Floats:
    """Return when gradients are there: the sum over a shared link, each alone on a dedicated one.

    A device without a rate waits for ever and holds up nobody else.
    """
    dedicated = links.dedicated(device)
    counted = np.where(dedicated | ~np.isfinite(alone_s), 0.0, alone_s)
    total = np.bincount(links.link[device], counted, minlength=len(links.specs))
    together = np.where(alone_s > 0.0, total[links.link[device]], 0.0)
    return np.where(dedicated | ~np.isfinite(alone_s), alone_s, together)
