"""Keeping an upload to a device's share of the link: a token bucket that is paid before sending.

    paid up to(t) <= burst + rate * t

A share changes from round to round, so the rate is said with every piece.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from airtune.errors import DeploymentError
from airtune.units import BITS_PER_BYTE

BURST_BYTES = 16 << 10
"""What may go at once after a pause; small, so that a share is kept within a tenth of a second."""


class Pacer:
    """One device's uplink; everything it sends at its share is asked of the same pacer."""

    def __init__(
        self,
        *,
        burst_bytes: int = BURST_BYTES,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Begin with a full bucket.

        Args:
            burst_bytes: Depth of the bucket.
            clock: Seconds, never going back.
            sleep: Waits so many seconds.
        """
        self._burst, self._clock, self._sleep = burst_bytes, clock, sleep
        self._paid_until = float("-inf")
        self._lock = threading.Lock()

    def __call__(self, size_bytes: int, rate_bps: float) -> float:
        """Wait until so many bytes may be sent at this rate; return the seconds it took.

        Raises:
            DeploymentError: if the rate is not above 0.

        >>> waits = []
        >>> pacer = Pacer(burst_bytes=0, clock=lambda: 0.0, sleep=waits.append)
        >>> pacer(1000, 8000.0), waits
        (1.0, [1.0])
        """
        if not rate_bps > 0:
            raise DeploymentError(
                f"an upload needs a rate above 0 bit/s, got {rate_bps:g}; give the device a share"
            )
        second = rate_bps / BITS_PER_BYTE
        with self._lock:
            now = self._clock()
            begin = max(self._paid_until, now - self._burst / second)
            self._paid_until = begin + size_bytes / second
            wait = max(self._paid_until - now, 0.0)
        if wait > 0:
            self._sleep(wait)
        return wait

    def at(self, rate_bps: float) -> Callable[[int], None]:
        """Return what a stream asks before each of its pieces."""

        def pay(size_bytes: int) -> None:
            self(size_bytes, rate_bps)

        return pay
