"""Bit rates: from hertz and received power, or from a measured capacity, in columns over devices.

Shannon as the papers use it and an NR-like form are the two rate models; both are concave and
non-decreasing in the bandwidth, so a division of a link by either is a convex problem. The
inverse, bandwidth from rate, is the solvers' business.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from airtune.plan import Floats, Ints, LinkSpec, LinkState, RateModel

SHANNON = RateModel()
"""`b log2(1 + s / b)`: the papers' rate, an upper bound on what a radio delivers."""

NR = RateModel(kind="nr", cap_bits_per_s_hz=7.40625, efficiency=0.75, usable=0.86)
"""NR-like: at most 8 bits a symbol at code rate 948/1024 (3GPP TS 38.214, 256-QAM), three
quarters of the Shannon rate (Mogensen et al., VTC 2007), and 14 % control overhead (TS 38.306)."""

_SMALLEST_HZ = 1e-280
"""Divisor floor: keeps `s / b` finite as b goes to zero, where the rate is zero anyway."""


def rate_bps(rate: RateModel, bandwidth_hz: ArrayLike, signal_hz: ArrayLike) -> Floats:
    """Return the bit rate on a band: `usable * min(cap * b, efficiency * b * log2(1 + s / b))`.

    Args:
        rate: the rate model, `SHANNON` or `NR` for instance.
        bandwidth_hz: b, at least 0; any shape; 0 gives 0.
        signal_hz: s, received power over noise density in hertz; same or broadcastable shape.

    Returns:
        Bit per second, in the broadcast shape.

    >>> rate_bps(SHANNON, [0.0, 1e6], [1e6, 3e6]).tolist()
    [0.0, 2000000.0]
    """
    return _rate(_columns([rate], np.zeros(1, np.int64)), bandwidth_hz, signal_hz)


def uplink_bps(links: LinkState, share: Floats, device: Ints | None = None) -> Floats:
    """Return each device's upload rate when it holds a share of its link.

    On a radio link the share is of the hertz: `rate(share * bandwidth, signal)`; on a link of
    measured capacity it is of the air time: `share * capacity`.

    Args:
        links: the links in one slot.
        share: fraction of the device's link, in [0, 1]; shape (n,).
        device: indices into the fleet, shape (n,); None = every device in order.

    Returns:
        Bit per second, shape (n,). Availability is not in it: who is absent has a rate too.
    """
    chosen = np.arange(len(links.link)) if device is None else device
    bandwidth = links.bandwidth_hz("up", chosen)
    capacity = links.up_capacity_bps[chosen]
    radio = _rate(
        _of_links(links.specs, links.link[chosen]), share * bandwidth, links.up_signal_hz[chosen]
    )
    return np.where(np.isnan(capacity), radio, share * capacity) * links.factor("up", chosen)


def downlink_bps(links: LinkState, device: Ints | None = None) -> Floats:
    """Return each device's rate of receiving a broadcast on the whole downlink band.

    Everybody gets the same bytes, so nothing is divided: each device listens at its own rate.

    Args:
        links: the links in one slot.
        device: indices into the fleet, shape (n,); None = every device in order.

    Returns:
        Bit per second, shape (n,).
    """
    chosen = np.arange(len(links.link)) if device is None else device
    bandwidth = links.bandwidth_hz("down", chosen)
    capacity = links.down_capacity_bps[chosen]
    radio = _rate(
        _of_links(links.specs, links.link[chosen]), bandwidth, links.down_signal_hz[chosen]
    )
    return np.where(np.isnan(capacity), radio, capacity) * links.factor("down", chosen)


def _rate(columns: Floats, bandwidth_hz: ArrayLike, signal_hz: ArrayLike) -> Floats:
    cap, efficiency, usable = columns
    bandwidth = np.asarray(bandwidth_hz, np.float64)
    ratio = np.asarray(signal_hz, np.float64) / np.maximum(bandwidth, _SMALLEST_HZ)
    bits_per_s_hz = np.minimum(cap, efficiency * np.log1p(ratio) / np.log(2.0))
    return np.asarray(usable * bits_per_s_hz * bandwidth, np.float64).reshape(
        np.broadcast_shapes(bandwidth.shape, np.shape(signal_hz))
    )


def _of_links(specs: Sequence[LinkSpec], link: Ints) -> Floats:
    return _columns([spec.rate for spec in specs], link)


def _columns(rates: Sequence[RateModel], link: Ints) -> Floats:
    """Return cap, efficiency and usable fraction of each device's link, shape (3, n)."""
    table = [(rate.cap_bits_per_s_hz, rate.efficiency, rate.usable) for rate in rates]
    return np.array(table, np.float64).T[:, link]
