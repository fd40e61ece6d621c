"""Rates of mobile links second by second, drawn: links of the kind that measured traces show.

The logarithm of a rate goes up and down by a first-order autoregression about its mean, within a
least and a most, and now and then a tunnel takes nearly all of it for some seconds. Means, scatter
and tunnels are ours, of the size that drives by bus and train in Norway's 3G network (Riiser et al.,
MMSys 2013) and LTE drives (van der Hooft et al., IEEE Comm. Letters 2016) report; none of their data
is here.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from testbed.network import set_rate
from testbed.spec import Spec


@dataclass(frozen=True, slots=True)
class Drive:
    """A kind of link on the move."""

    down_mbps: float
    """Median."""
    up_mbps: float
    scatter: float
    """Standard deviation of the logarithm."""
    memory_s: float
    """Seconds after which a rate has forgotten most of what it was."""
    tunnels_per_s: float
    tunnel_s: float


THREE_G = Drive(
    down_mbps=2.0, up_mbps=1.0, scatter=0.5, memory_s=10.0, tunnels_per_s=1 / 120, tunnel_s=4.0
)
LTE = Drive(
    down_mbps=25.0, up_mbps=10.0, scatter=0.6, memory_s=8.0, tunnels_per_s=1 / 300, tunnel_s=2.0
)
LEAST_MBPS = 0.05
_TUNNEL = 0.05
"""Of a rate that a tunnel leaves."""


def drive_of(kind: Drive, seconds: int, seed: int) -> np.ndarray:
    """Return rates in Mbit/s, shape (seconds, 2): up and down."""
    draw = np.random.default_rng(seed)
    keep = float(np.exp(-1 / kind.memory_s))
    level, left, rows = draw.normal(0.0, kind.scatter), 0.0, []
    for _ in range(seconds):
        level = keep * level + np.sqrt(1 - keep**2) * draw.normal(0.0, kind.scatter)
        if left <= 0 and draw.random() < kind.tunnels_per_s:
            left = draw.exponential(kind.tunnel_s)
        part = float(np.exp(level)) * (_TUNNEL if left > 0 else 1.0)
        left -= 1.0
        rows.append((kind.up_mbps * part, kind.down_mbps * part))
    return np.maximum(np.array(rows), LEAST_MBPS)


class Playing:
    """Gives the links of a bed that is up the rates of drives, a second each, over and over."""

    def __init__(self, spec: Spec, drives: Sequence[np.ndarray]) -> None:
        """Play nothing yet; a drive a device."""
        self._spec, self._drives = spec, drives
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._play, name="traces")

    def __enter__(self) -> Playing:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _play(self) -> None:
        second = 0
        while not self._stopping.wait(1.0):
            for device, drive in enumerate(self._drives):
                up_mbps, down_mbps = drive[second % len(drive)]
                set_rate(self._spec, device, float(up_mbps), float(down_mbps))
            second += 1
