"""How fast devices really are: what they were planned to take against what they report.

A scalar Kalman filter a device, on the logarithm of its true speed over the declared one:

    every round    v += DRIFT^2
    it reports     y = ln(planned s / reported s);  g = v / (v + NOISE^2);  m += g (y - m);  v *= 1 - g
    |y - m| > 3 sqrt(v + NOISE^2)    once: the noise counts nine times; twice in a row: v = START^2

so that one odd round changes little, and a device whose power mode has changed is believed at once.
The constants are ours. A device that is not heard of keeps what it declared.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from airtune.errors import CheckpointError
from airtune.plan import Floats, Ints

START, DRIFT, NOISE, ODD = 0.4, 0.05, 0.05, 3.0
_NAMES = ("log", "variance", "odd")


class LearntSpeed:
    """The devices of a run, by number."""

    def __init__(self, devices: int) -> None:
        """Believe what was declared."""
        self._log, self._variance = np.zeros(devices), np.full(devices, START**2)
        self._odd = np.zeros(devices)

    @property
    def factor(self) -> Floats:
        """True speed over the declared one, shape (devices,)."""
        return np.asarray(np.exp(self._log), np.float64)

    def learn(self, device: Ints, planned_s: Floats, reported_s: Floats) -> None:
        """Take in a round.

        Args:
            device: who computed, (n,).
            planned_s: for its work, at its declared speed, (n,).
            reported_s: that it took; not finite or not above 0 where it said nothing, (n,).
        """
        self._variance += DRIFT**2
        told = np.isfinite(reported_s) & (reported_s > 0) & (planned_s > 0)
        who = device[told]
        innovation = np.log(planned_s[told] / reported_s[told]) - self._log[who]
        before = self._variance[who]
        is_odd = np.abs(innovation) > ODD * np.sqrt(before + NOISE**2)
        is_new = is_odd & (self._odd[who] > 0)
        noise = np.where(is_odd & ~is_new, 9 * NOISE**2, NOISE**2)
        variance = np.where(is_new, START**2, before)
        gain = variance / (variance + noise)
        self._log[who] += gain * innovation
        self._variance[who] = variance * (1 - gain)
        self._odd[who] = is_odd & ~is_new

    def snapshot(self) -> dict[str, NDArray[np.generic]]:
        """Return what was learnt, as arrays."""
        return {name: getattr(self, f"_{name}").copy() for name in _NAMES}

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a snapshot; {} = from the start.

        Raises:
            CheckpointError: if it is not one of as many devices.
        """
        for name in _NAMES if arrays else ():
            found = arrays.get(name)
            if found is None or found.shape != self._log.shape:
                raise CheckpointError(f"the speeds learnt lack {name} of {len(self._log)} devices")
            setattr(self, f"_{name}", np.asarray(found, np.float64).copy())
