"""Devices that change their power mode over rounds, and with it their speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from airtune.keys import generator
from airtune.plan import Floats, Ints


@dataclass(frozen=True, slots=True)
class ModePlan:
    """What a class of devices does: each `every_rounds` rounds it draws one of the factors."""

    factors: tuple[float, ...] = (1.0,)
    """Of the class's speed."""
    every_rounds: int = 0
    """0 = the first factor for ever."""


NO_MODES = ModePlan()


@dataclass(frozen=True, slots=True)
class Modes:
    """The plans of a whole fleet as a table."""

    factors: Floats
    """One row a plan, padded, shape (plans, most modes)."""
    count: Ints
    """Modes of each plan, shape (plans,)."""
    every_rounds: Ints
    """Shape (plans,)."""
    plan: Ints
    """Row of each device, shape (devices,)."""

    def factor_at(self, seed: int, round: int) -> Floats:
        """Return the factor of each device's speed in a round, shape (devices,).

        The mode is drawn by key (seed, period, number of the period), so devices that change as
        often change at the same time, each to a mode of its own.
        """
        every = self.every_rounds[self.plan]
        mode = np.zeros(self.plan.shape[0], np.int64)
        for period in np.unique(every[every > 0]).tolist():
            random = generator(seed, "mode", period, round // period)
            drawn = (random.random(mode.shape[0]) * self.count[self.plan]).astype(np.int64)
            mode = np.where(every == period, drawn, mode)
        return np.asarray(self.factors[self.plan, mode])


def tabulate_modes(plans: Sequence[ModePlan], plan: Ints) -> Modes:
    """Return the table of several plans.

    Args:
        plans: at least one.
        plan: index into `plans` of each device, shape (devices,).
    """
    widest = max(len(entry.factors) for entry in plans)
    rows = [entry.factors + (1.0,) * (widest - len(entry.factors)) for entry in plans]
    return Modes(
        factors=np.array(rows),
        count=np.array([len(entry.factors) for entry in plans]),
        every_rounds=np.array([entry.every_rounds for entry in plans]),
        plan=plan,
    )
