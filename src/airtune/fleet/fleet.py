"""The fleet: devices in columns, the links they are on, and how both stand at any moment.

Everything that changes is a pure function of (seed, round, slot, time): a replay, a resumed run
and another engine see the same links. Rounds and slots count from 0; slots are the fleet's
shortest and begin with the round.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from airtune.errors import FleetError
from airtune.fleet.modes import Modes
from airtune.fleet.moment import Channel, Moment
from airtune.fleet.truth import Truth
from airtune.keys import generator
from airtune.plan import Floats, Ints, LinkSpec, LinkState, Profiles


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """The edge server that aggregates, and computes its half of a split model."""

    flops_per_s: float = 1e13
    """Achieved in training."""
    memory_bytes: float = 24.0 * 1024**3


@dataclass(frozen=True, slots=True)
class Fleet:
    """Devices and links; every column has shape (devices,)."""

    name: str
    names: tuple[str, ...]
    """Of the devices, all different."""
    kinds: tuple[str, ...]
    """Class of each device, as the fleet's file names it."""
    link: Ints
    """Index into `specs`."""
    flops_per_s: Floats
    """Achieved in training in float32, in the fastest usual mode."""
    memory_bytes: Floats
    """Left for training."""
    power_w: Floats
    """Drawn while computing."""
    transmit_power_w: Floats
    availability: Floats
    """Probability of being there in a round, independently of other rounds and devices."""
    modes: Modes
    specs: tuple[LinkSpec, ...]
    channels: tuple[Channel, ...]
    """The links with their devices placed, in the order of `specs`."""
    server: ServerSpec
    assumptions: tuple[str, ...]
    """What stands behind the numbers, one line each; printed on every figure."""
    seed: int
    truth: Truth | None = None
    """How far devices are from what they declare; None = they are as declared."""
    precision: tuple[tuple[str, Floats], ...] = ()
    """Names of precisions with speeds in them over those in float32, each of shape (devices,)."""
    is_true: bool = False
    """Speeds and links are the true ones; otherwise those that were declared."""
    trace_s: float = 0.0
    """Length of the longest measured trace of its links; 0 = it has none."""

    def __len__(self) -> int:
        return len(self.names)

    def at_precision(self, name: str) -> Fleet:
        """Return the fleet at the speeds of a precision; where none are declared, those of float32.

        Args:
            name: float32, or one of `airtune.fleet.device.PRECISIONS`.
        """
        if name == "float32":
            return self
        factor = dict(self.precision).get(name)
        if factor is None:
            line = (
                f"speeds in {name} are taken to be those in float32: the fleet declares no others"
            )
            return replace(self, assumptions=(*self.assumptions, line))
        line = f"speeds in {name} are {factor.min():g} to {factor.max():g} times those in float32"
        return replace(
            self,
            flops_per_s=self.flops_per_s * factor,
            precision=(),
            assumptions=(*self.assumptions, line),
        )

    def true(self) -> Fleet:
        """Return the fleet as it really is; the same where all devices are as declared."""
        return self if self.truth is None else replace(self, is_true=True)

    @property
    def slot_s(self) -> float | None:
        """Length of the shortest slot; None where no link changes within a round."""
        slots = [spec.slot_s for spec in self.specs if spec.slot_s is not None]
        return min(slots) if slots else None

    def flops_at(self, round: int) -> Floats:
        """Return the speed of each device in a round, after its power mode, shape (devices,)."""
        speed = np.asarray(self.flops_per_s * self.modes.factor_at(self.seed, round))
        if self.truth is None or not self.is_true:
            return speed
        return speed * self.truth.speed_at(self.seed, round)

    def links_at(self, round: int, slot: int, time_s: float) -> LinkState:
        """Return all links in one slot.

        Args:
            round: counted from 0; fading per round and dropouts are drawn by it.
            slot: within the round, counted from 0 in `slot_s`; fading per slot is drawn by it.
            time_s: virtual time at which the slot begins; traces are read at it.

        Returns:
            The state of every device's link. Equal arguments give equal states.
        """
        moment = Moment(self.seed, round, slot, time_s, self.slot_s)
        columns = np.full((4, len(self)), np.nan)
        for channel in self.channels:
            first = 0 if channel.is_radio else 2
            columns[first : first + 2, channel.device] = channel.at(moment)
        draws = generator(self.seed, "available", round).random(len(self))
        factor = None
        if self.truth is not None and self.is_true:
            factor = self.truth.rate_at(self.seed, round)
        return LinkState(
            specs=self.specs,
            link=self.link,
            up_signal_hz=columns[0],
            down_signal_hz=columns[1],
            up_capacity_bps=columns[2],
            down_capacity_bps=columns[3],
            available=draws < self.availability,
            up_factor=factor,
            down_factor=factor,
        )

    def profiles(self, samples: Ints) -> Profiles:
        """Return what a method may know of the devices.

        Args:
            samples: training sequences each device holds, shape (devices,).

        Raises:
            FleetError: if the counts do not match the devices, or are all zero or negative.
        """
        counts = np.asarray(samples, np.int64)
        if counts.shape != (len(self),) or counts.min() < 0 or counts.sum() == 0:
            raise FleetError(
                f"fleet {self.name!r} needs one sample count of at least 0 for each of its "
                f"{len(self)} devices, not all 0; got {counts.size} counts summing to {counts.sum()}"
            )
        return Profiles(
            names=self.names,
            weight=counts / counts.sum(),
            samples=counts,
            link=self.link,
            flops_per_s=self.flops_per_s,
            memory_bytes=self.memory_bytes,
            power_w=self.power_w,
            transmit_power_w=self.transmit_power_w,
            dedicated=np.array([spec.kind == "dedicated" for spec in self.specs])[self.link],
        )
