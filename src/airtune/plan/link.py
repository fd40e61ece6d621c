"""Wireless links as a decider sees them: what they are, and how they stand in one slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from airtune.plan.shape import Bools, Floats, Ints


@dataclass(frozen=True, slots=True)
class RateModel:
    """How hertz become bit/s: `overhead * min(cap * b, efficiency * b * log2(1 + s / b))`.

    `s` (hertz) is received power over noise density. Shannon, as in the papers, is the default:
    no cap, efficiency 1, no overhead. Either form is concave in the bandwidth b.
    """

    kind: Literal["shannon", "nr"] = "shannon"
    cap_bits_per_s_hz: float = float("inf")
    efficiency: float = 1.0
    usable: float = 1.0
    """Fraction of the rate left after control overhead."""


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """One link of the fleet: `shared` is divided among its devices, `dedicated` is not."""

    name: str
    kind: Literal["shared", "dedicated"]
    up_bandwidth_hz: float
    """Hertz to divide; 0 where the link's capacity is given in bit/s instead."""
    down_bandwidth_hz: float
    rate: RateModel
    slot_s: float | None
    """Length of a fading slot; None = the link stands still within a round."""


@dataclass(frozen=True, slots=True)
class LinkState:
    """All links in one slot, in columns over the whole fleet, each of shape (devices,).

    A device on a radio link has finite `up_signal_hz`; a device on a link whose capacity is
    measured or fixed has finite `up_capacity_bps`. The other column holds NaN.
    """

    specs: tuple[LinkSpec, ...]
    link: Ints
    """Index of the device's link in `specs`."""
    up_signal_hz: Floats
    """Received power over noise density, `p g / N0`, with noise figure and margin in it."""
    down_signal_hz: Floats
    up_capacity_bps: Floats
    """Rate of the whole link when one device has all of it; 0 is an outage."""
    down_capacity_bps: Floats
    available: Bools
    """False = the device dropped out of this round."""
    up_factor: Floats | None = None
    """By which rates are other than the columns say; None = they are as these say."""
    down_factor: Floats | None = None

    def factor(self, way: Literal["up", "down"], device: Ints) -> Floats:
        """Return by which some devices' rates are other than the columns say, shape (n,)."""
        column = self.up_factor if way == "up" else self.down_factor
        return np.ones(device.shape) if column is None else column[device]

    def dedicated(self, device: Ints) -> Bools:
        """Return which devices have their link to themselves, shape (n,)."""
        kinds = np.array([spec.kind == "dedicated" for spec in self.specs], np.bool_)
        return np.asarray(kinds[self.link[device]], np.bool_)

    def bandwidth_hz(self, way: Literal["up", "down"], device: Ints) -> Floats:
        """Return the hertz of each device's whole link; 0 where its capacity is given, shape (n,)."""
        hertz = [getattr(spec, f"{way}_bandwidth_hz") for spec in self.specs]
        return np.asarray(np.array(hertz)[self.link[device]], np.float64)
