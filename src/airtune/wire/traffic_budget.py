"""How many bytes each device may still receive and send this month, whatever a method would like.

A month is 30 days of the run's own time. What crosses in a round that spans two months counts in
both, so that no month exceeds the cap however a round's bytes are told apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from airtune.errors import CheckpointError
from airtune.plan import Bools, Floats, Ints
from airtune.units import format_bytes

MONTH_S = 30 * 24 * 3600.0


def does_not_hold(what: str) -> str:
    """Return in words that a device has too few bytes of its month left for something."""
    return f"its bytes of this month do not hold {what} (limits.device_bytes_per_month)"


class TrafficBudget:
    """The devices' bytes of a month; without a cap all are endless and nothing is remembered."""

    def __init__(self, cap_bytes: float | None, devices: int) -> None:
        """Begin the first month with nothing used.

        Args:
            cap_bytes: that a device may receive and send in a month, together; None = no cap.
            devices: how many there are.
        """
        self.cap_bytes = cap_bytes
        self._month, self._now_s = 0, 0.0
        self._used, self._since = np.zeros(devices), np.zeros(devices)
        self._short = np.zeros(devices, np.bool_)

    @property
    def left_bytes(self) -> Floats:
        """What each device has left, shape (devices,); inf without a cap."""
        if self.cap_bytes is None:
            return np.full(self._used.shape, np.inf)
        return self.cap_bytes - self._used

    @property
    def used_bytes(self) -> Floats:
        """What each device has used this month, shape (devices,)."""
        return self._used.copy()

    @property
    def short(self) -> Bools:
        """Devices that were last told more than they have left this month, shape (devices,)."""
        return self._short.copy()

    @property
    def now_s(self) -> float:
        """When the last round began."""
        return self._now_s

    @property
    def month_ends_s(self) -> float:
        """When the next month begins."""
        return (self._month + 1) * MONTH_S

    def begin_round(self, time_s: float) -> None:
        """Let a round begin at this time; a month that is over takes what was used with it."""
        self._now_s = time_s
        month = max(int(time_s // MONTH_S), self._month)
        if month > self._month:
            self._month, self._used = month, self._since.copy()
            self._short[:] = False
        self._since[:] = 0.0

    def faults(self, device: Ints, most_bytes: Floats) -> tuple[str, ...]:
        """Return why devices cannot do what they are told; empty where they can.

        Args:
            device: n devices.
            most_bytes: what it can take of each, (n,).
        """
        if self.cap_bytes is None:
            return ("",) * len(device)
        left = self.left_bytes[device]
        self._short[device] = most_bytes > left
        return tuple(
            f"{does_not_hold('the round')}: {format_bytes(has)} of "
            f"{format_bytes(self.cap_bytes)} are left, up to {format_bytes(most)} are needed"
            if most > has
            else ""
            for most, has in zip(most_bytes.tolist(), left.tolist(), strict=True)
        )

    def spend(self, device: Ints, size_bytes: Floats) -> None:
        """Count bytes that crossed; negative ones give back what was set aside."""
        if self.cap_bytes is not None:
            self._used[device] += size_bytes
            self._since[device] += size_bytes

    def take(self, device: int, size_bytes: float) -> bool:
        """Count bytes of one device that are about to cross; False, and not counted, if too many."""
        if size_bytes > self.left_bytes[device]:
            return False
        self.spend(np.array([device]), np.array([float(size_bytes)]))
        return True

    @contextmanager
    def together(self) -> Iterator[None]:
        """Count what follows as one; for those that write down what they count."""
        yield

    def snapshot(self) -> dict[str, NDArray[np.generic]]:
        """Return what was used, as arrays; {} without a cap."""
        if self.cap_bytes is None:
            return {}
        return {"month": np.array(self._month), "used": self._used.copy(),
                "since": self._since.copy(), "short": self._short.copy()}  # fmt: skip

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a snapshot; {} = from the start.

        Raises:
            CheckpointError: if it is not one of as many devices.
        """
        if self.cap_bytes is None or not arrays:
            return
        try:
            used = np.asarray(arrays["used"], np.float64)
            since = np.asarray(arrays["since"], np.float64)
            short, month = np.asarray(arrays["short"], np.bool_), int(arrays["month"])
        except KeyError as error:
            raise CheckpointError(f"the bytes used of a month lack {error}") from error
        if not used.shape == since.shape == short.shape == self._used.shape:
            raise CheckpointError(
                f"the bytes used of a month are of {used.shape} devices, {self._used.shape} are there"
            )
        self._used, self._since, self._short = used.copy(), since.copy(), short.copy()
        self._month = month
