"""A message as it travels, and what became of it: all that a carrier knows; imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Envelope:
    """The header as bytes, and the blobs it lists, in its order."""

    header: bytes
    blobs: tuple[bytes, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of header and blobs."""
        return len(self.header) + sum(map(len, self.blobs))


@dataclass(frozen=True, slots=True)
class Arrival:
    """What became of a message to a device."""

    envelope: Envelope | None
    """None = nothing came back."""
    after_s: float
    """Seconds after it was sent."""
    fault: str = ""
    is_late: bool = False
    """Nothing came by the deadline."""


@dataclass(frozen=True, slots=True)
class More:
    """Time beyond a deadline, for as long as it is of use."""

    most_s: float
    is_needed: Callable[[], bool]
    """Asked again and again once the deadline is over."""
