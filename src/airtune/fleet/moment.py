"""When a link is looked at, and what each kind of link answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from airtune.plan import Floats, Ints


@dataclass(frozen=True, slots=True)
class Moment:
    """A slot of a round, and the virtual time at which it begins."""

    seed: int
    round: int
    slot: int
    """Counted from 0 in the fleet's shortest slot."""
    time_s: float
    slot_s: float | None
    """Length of the fleet's shortest slot; None = nothing changes within a round."""

    def block(self, every: str, slot_s: float | None) -> int:
        """Return the number of the block of a link that changes each round, or each own slot."""
        if every == "round" or slot_s is None or self.slot_s is None:
            return 0
        return int(self.slot * self.slot_s / slot_s + 1e-9)


@dataclass(frozen=True, slots=True)
class Members:
    """The devices on one link, in columns of shape (n,)."""

    device: Ints
    """Index into the fleet."""
    transmit_power_w: Floats
    distance_m: Floats
    """NaN = wherever the link places it."""


class Channel(Protocol):
    """One link with its devices placed on it; answers for any moment and remembers nothing."""

    @property
    def device(self) -> Ints:
        """Index into the fleet of each device on the link, shape (n,)."""
        ...

    @property
    def is_radio(self) -> bool:
        """True: `at` gives received power over noise density in hertz; False: capacity in bit/s."""
        ...

    def at(self, moment: Moment) -> tuple[Floats, Floats]:
        """Return the uplink and the downlink column, each of shape (n,)."""
        ...


class Medium(Protocol):
    """What a link is made of: its settings, which place devices on it."""

    @property
    def up_bandwidth_hz(self) -> float:
        """Hertz of the uplink; 0 where capacity is given in bit/s."""
        ...

    @property
    def down_bandwidth_hz(self) -> float:
        """Hertz of the downlink; 0 where capacity is given in bit/s."""
        ...

    def describe(self) -> str:
        """Return the assumptions in a few words, for the foot of a figure."""
        ...

    def place(self, link: str, members: Members, seed: int) -> Channel:
        """Return the link with its devices on it, drawn by key (seed, link name)."""
        ...
