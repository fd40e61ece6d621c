"""The same fleet with more of something, or without some of its devices: what planning asks for.

Places, shadowing, fading and absences stay as they were drawn, so that two such fleets differ in
nothing but what was changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from airtune.fleet.fleet import Fleet
from airtune.fleet.moment import Channel, Moment
from airtune.plan import Floats, Ints


@dataclass(frozen=True, slots=True)
class ScaledChannel:
    """A link of given or measured capacity that carries a multiple of it."""

    channel: Channel
    up: float
    down: float

    @property
    def device(self) -> Ints:
        """Index into the fleet of each device on the link, shape (n,)."""
        return self.channel.device

    @property
    def is_radio(self) -> bool:
        """False: the columns are capacities in bit/s."""
        return False

    def at(self, moment: Moment) -> tuple[Floats, Floats]:
        """Return the uplink and downlink capacity in bit/s, each of shape (n,)."""
        up, down = self.channel.at(moment)
        return self.up * up, self.down * down


def with_bandwidth(fleet: Fleet, *, up: float = 1.0, down: float = 1.0) -> Fleet:
    """Return the fleet with a multiple of every link's hertz, or bit/s where those are given.

    Received power over noise density stays: wider bands are sent on with the same power.

    Args:
        fleet: as it is.
        up: factor of the uplinks, above 0.
        down: factor of the downlinks, above 0.

    >>> from airtune.fleet import load_fleet
    >>> with_bandwidth(load_fleet("pocket"), up=2.0).specs[0].up_bandwidth_hz
    800000.0
    """
    specs = tuple(
        replace(
            spec,
            up_bandwidth_hz=spec.up_bandwidth_hz * up,
            down_bandwidth_hz=spec.down_bandwidth_hz * down,
        )
        for spec in fleet.specs
    )
    channels = tuple(
        channel if channel.is_radio else ScaledChannel(channel, up, down)
        for channel in fleet.channels
    )
    return replace(fleet, specs=specs, channels=channels)


def with_memory(
    fleet: Fleet, *, factor: float = 1.0, more_bytes: float = 0.0, kind: str | None = None
) -> Fleet:
    """Return the fleet with other memory on its devices, or on those of one kind.

    Args:
        fleet: as it is.
        factor: of each device's memory, above 0.
        more_bytes: beside it.
        kind: class of devices, as the fleet names it; None = all.
    """
    changed = fleet.memory_bytes * factor + more_bytes
    chosen = np.array([kind in (None, one) for one in fleet.kinds])
    return replace(fleet, memory_bytes=np.where(chosen, changed, fleet.memory_bytes))


def with_server(fleet: Fleet, factor: float) -> Fleet:
    """Return the fleet with an edge server of a multiple of the speed."""
    server = replace(fleet.server, flops_per_s=fleet.server.flops_per_s * factor)
    return replace(fleet, server=server)


def with_speed(fleet: Fleet, device: int, factor: float) -> Fleet:
    """Return the fleet with one device of a multiple of the speed."""
    speeds = fleet.flops_per_s.copy()
    speeds[device] *= factor
    return replace(fleet, flops_per_s=speeds)


def without(fleet: Fleet, devices: Ints) -> Fleet:
    """Return the fleet in which some devices are never there."""
    availability = fleet.availability.copy()
    availability[devices] = 0.0
    return replace(fleet, availability=availability)
