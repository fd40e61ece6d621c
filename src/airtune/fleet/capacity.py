"""A link whose capacity is given in bit/s: a Wi-Fi site, a wired line, a probed connection.

Each device has the rate it would get with the whole link to itself; on a shared link what is
divided is air time, so a slow device holds the air longer for the same bytes. The capacity may
vary by a factor drawn anew each round or each slot, the same in both directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.fleet.fading import EVERY, Every
from airtune.fleet.moment import Members, Moment
from airtune.fleet.section import SettingsSection
from airtune.fleet.spread import ONE, Spread, read_spread
from airtune.keys import generator
from airtune.plan import Floats, Ints

_MBPS = 1e6


@dataclass(frozen=True, slots=True)
class CapacityMedium:
    """Settings of a link of given capacity, in bit/s."""

    up_bps: Spread
    down_bps: Spread
    factor: Spread = ONE
    """What the capacity is multiplied by, drawn anew each block."""
    every: Every = "round"
    slot_s: float | None = None

    @property
    def up_bandwidth_hz(self) -> float:
        """0: there are no hertz of ours to divide."""
        return 0.0

    @property
    def down_bandwidth_hz(self) -> float:
        """0: there are no hertz of ours to divide."""
        return 0.0

    def describe(self) -> str:
        """Return the assumptions in a few words."""
        words = f"{_range(self.up_bps)} Mbit/s up, {_range(self.down_bps)} Mbit/s down"
        if self.factor == ONE:
            return f"{words}, steady"
        return f"{words}, times {self.factor.low:g}-{self.factor.high:g} drawn each {self.every}"

    def place(self, link: str, members: Members, seed: int) -> CapacityChannel:
        """Return the link with each device's capacity drawn by (seed, link)."""
        count = members.device.shape[0]
        up = self.up_bps.draw(generator(seed, "up", link), count)
        down = self.down_bps.draw(generator(seed, "down", link), count)
        return CapacityChannel(link, members.device, up, down, self.factor, self.every, self.slot_s)


@dataclass(frozen=True, slots=True)
class CapacityChannel:
    """A link of given capacity with its devices; columns of shape (n,)."""

    link: str
    device: Ints
    up_bps: Floats
    down_bps: Floats
    factor: Spread = ONE
    every: Every = "round"
    slot_s: float | None = None

    @property
    def is_radio(self) -> bool:
        """False: the columns are capacities in bit/s."""
        return False

    def at(self, moment: Moment) -> tuple[Floats, Floats]:
        """Return the uplink and downlink capacity in bit/s, each of shape (n,)."""
        block = moment.block(self.every, self.slot_s)
        random = generator(moment.seed, "capacity", self.link, moment.round, block)
        low, high = self.factor.low, self.factor.high
        # Independent draws here: a stratified one would tie a device's luck to the others'.
        factors = low + (high - low) * random.random(self.device.shape[0])
        return self.up_bps * factors, self.down_bps * factors


def read_capacity(section: SettingsSection, slot_s: float | None) -> CapacityMedium:
    """Read the settings of a link of given capacity; faults are noted in the section."""
    up = read_spread(section, "up_mbps", above=0.0)
    down = read_spread(section, "down_mbps", up, above=0.0)
    varies = section.section("varies")
    factor, every = ONE, EVERY[0]
    if section.has("varies"):
        low, high = varies.number("low", low=0.0), varies.number("high", above=0.0)
        every = varies.choice("every", EVERY, "round")
        factor = Spread(low, high)
        if low > high:
            varies.fault("low", f"must not exceed high, got {low:g} and {high:g}")
        if every == "slot" and slot_s is None:
            varies.fault("every", "is slot, but the link has no slot_s; set it in seconds")
    varies.close()
    section.close()
    return CapacityMedium(up.scaled(_MBPS), down.scaled(_MBPS), factor, every, slot_s)


def _range(spread: Spread) -> str:
    low, high = spread.low / _MBPS, spread.high / _MBPS
    return f"{low:g}" if np.isclose(low, high) else f"{low:g}-{high:g}"
