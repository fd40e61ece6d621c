"""True speeds of devices and links, learnt from planned against measured seconds.

A scalar Kalman filter a device, on the logarithm of its true speed over the declared one:

    every round    v += drift^2
    it reports     y = ln(planned s / reported s);  g = v / (v + r);  m += g (y - m);  v *= 1 - g
                   r += newest ((y - m)^2 - v - r), the square of the noise, as reports scatter
    |y - m| > 3 sqrt(v + r)    once: the noise counts nine times; twice in a row: v = start^2

so that one odd round changes little, and a device whose power mode has changed is believed at once.
The next report differs from m with the variance v + r. The constants are ours. A device that is not
heard of keeps what it declared; none is taken to be `MOST` times as fast, or as slow, whatever it says.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from airtune.errors import CheckpointError
from airtune.plan import Floats, Ints

START, DRIFT, NOISE, ODD = 0.4, 0.02, 0.05, 3.0
"""Of computing; a link starts, drifts and scatters more."""
LEAST_NOISE = 0.02
"""Least that reports are taken to scatter."""
MOST = 1e4
NEWEST = 0.15
"""Weight of the newest report in how far reports scatter."""
_NAMES = ("log", "variance", "odd", "noise")


class LearntRatio:
    """True speed over the declared one, of the devices of a run by number."""

    def __init__(
        self, devices: int, *, start: float = START, drift: float = DRIFT, noise: float = NOISE
    ) -> None:
        """Believe what was declared.

        Args:
            devices: how many.
            start: standard deviation of the logarithm before any report.
            drift: of its change from round to round.
            noise: of a report, as a first guess.
        """
        self._start, self._drift, self._first = start**2, drift**2, noise**2
        self._log, self._variance = np.zeros(devices), np.full(devices, self._start)
        self._odd, self._noise = np.zeros(devices), np.full(devices, self._first)

    @property
    def factor(self) -> Floats:
        """True speed over the declared one, shape (devices,)."""
        return np.asarray(np.exp(self._log), np.float64)

    @property
    def deviation(self) -> Floats:
        """Standard deviation of the logarithm of the factor, shape (devices,)."""
        return np.asarray(np.sqrt(self._variance), np.float64)

    @property
    def spread(self) -> Floats:
        """Standard deviation of the logarithm of the next report, shape (devices,)."""
        return np.asarray(np.sqrt(self._variance + self._drift + self._noise), np.float64)

    def learn(self, device: Ints, planned_s: Floats, reported_s: Floats) -> None:
        """Take in a round.

        Args:
            device: who worked or sent, (n,).
            planned_s: for that, at the declared speed, (n,).
            reported_s: that it took; not finite or not above 0 where nothing was said, (n,).
        """
        self._variance += self._drift
        told = np.isfinite(reported_s) & (reported_s > 0)
        told &= np.isfinite(planned_s) & (planned_s > 0)
        who = device[told]
        innovation = np.log(planned_s[told]) - np.log(reported_s[told]) - self._log[who]
        before, scatter = self._variance[who], self._noise[who]
        foreseen = before + scatter
        is_odd = np.abs(innovation) > ODD * np.sqrt(foreseen)
        is_new = is_odd & (self._odd[who] > 0)
        noise = np.where(is_odd & ~is_new, 9 * np.maximum(scatter, self._first), scatter)
        variance = np.where(is_new, self._start, before)
        gain = variance / (variance + noise)
        log = self._log[who] + gain * innovation
        self._log[who] = np.clip(log, -np.log(MOST), np.log(MOST))
        self._variance[who] = variance * (1 - gain)
        self._odd[who] = is_odd & ~is_new
        # a first report says how wrong the declaration was, not how reports scatter
        is_known = before < self._start / 2
        seen = np.minimum(innovation**2, ODD**2 * foreseen) - before
        found = scatter + np.where(is_known, NEWEST * (seen - scatter), 0.0)
        self._noise[who] = np.maximum(found, LEAST_NOISE**2)

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
