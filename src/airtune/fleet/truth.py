"""Devices that are not as declared: true speeds and rates are the declared ones times a factor.

A class's factors are drawn from its range, and drawn anew every so many rounds; between two draws a
factor goes from one to the other, evenly in its logarithm, so that it drifts and stays in the range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.fleet.spread import ONE, Spread
from airtune.keys import generator
from airtune.plan import Floats


@dataclass(frozen=True, slots=True)
class TruthPlan:
    """How far devices of a class are from what they declare."""

    speed: Spread = ONE
    """True speed over the declared one."""
    rate: Spread = ONE
    """True rate of the device's link over the declared one, up and down alike."""
    every_rounds: int = 0
    """Rounds between draws; 0 = one draw for ever."""


DECLARED = TruthPlan()


@dataclass(frozen=True, slots=True)
class Truth:
    """The plans of a whole fleet, class by class in the order of its devices."""

    classes: tuple[tuple[str, TruthPlan, int], ...]
    """Name, plan and number of devices."""

    def speed_at(self, seed: int, round: int) -> Floats:
        """Return true over declared speed in a round, shape (devices,)."""
        return self._factor("speed", [plan.speed for _, plan, _ in self.classes], seed, round)

    def rate_at(self, seed: int, round: int) -> Floats:
        """Return true over declared rate in a round, shape (devices,)."""
        return self._factor("rate", [plan.rate for _, plan, _ in self.classes], seed, round)

    def _factor(self, what: str, spreads: list[Spread], seed: int, round: int) -> Floats:
        parts = []
        for (name, plan, count), spread in zip(self.classes, spreads, strict=True):
            every = max(plan.every_rounds, 1)
            number = round // every if plan.every_rounds else 0
            share = (round % every) / every if plan.every_rounds else 0.0
            low, high = (
                np.log(spread.draw(generator(seed, "truth", name, what, number + step), count))
                for step in (0, 1)
            )
            parts.append(np.exp((1.0 - share) * low + share * high))
        return np.concatenate(parts)
