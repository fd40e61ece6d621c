"""A quantity that differs over the devices of a class: one number, or a range drawn by key.

Draws are stratified: with n devices each n-th of the range holds exactly one, in random order, so
that even a fleet of ten has slow and fast devices whatever the seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from airtune.fleet.section import SettingsSection
from airtune.plan import Floats

Law = Literal["uniform", "log-uniform"]
LAWS: tuple[Law, ...] = ("uniform", "log-uniform")


@dataclass(frozen=True, slots=True)
class Spread:
    """A range and how it is filled; a single number has low = high."""

    low: float
    high: float
    law: Law = "uniform"

    @property
    def is_range(self) -> bool:
        """Whether there is anything to draw."""
        return self.low < self.high

    def draw(self, random: np.random.Generator, count: int) -> Floats:
        """Return one value a device, shape (count,).

        >>> Spread(2.0, 2.0).draw(np.random.default_rng(0), 3).tolist()
        [2.0, 2.0, 2.0]
        """
        if not self.is_range:
            return np.full(count, self.low)
        place = (random.permutation(count) + random.random(count)) / max(count, 1)
        if self.law == "log-uniform":
            return np.asarray(self.low * (self.high / self.low) ** place)
        return self.low + (self.high - self.low) * place

    def scaled(self, factor: float) -> Spread:
        """Return the same spread in another unit."""
        return Spread(self.low * factor, self.high * factor, self.law)


ONE = Spread(1.0, 1.0)
PLACED_BY_LINK = Spread(np.nan, np.nan)
USUAL_DBM = Spread(20.0, 20.0)


def read_spread(
    section: SettingsSection,
    key: str,
    default: Spread | None = None,
    *,
    low: float = 0.0,
    high: float = np.inf,
    above: float = -np.inf,
) -> Spread:
    """Read `4`, `[1, 20]` (uniform) or `{low: 1, high: 20, law: log-uniform}`.

    Args:
        section: where the key stands; faults are noted there.
        key: name of the quantity.
        default: what an absent key means; None = required.
        low: least value allowed.
        high: greatest value allowed.
        above: values must be greater than this.
    """
    value = section.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, dict):
        inner = section.section(key)
        ends = [inner.number(end, low=low, high=high, above=above) for end in ("low", "high")]
        law = inner.choice("law", LAWS, "uniform")
        inner.close()
    elif isinstance(value, list) and len(value) == 2:
        ends = [section.checked(key, end, low=low, high=high, above=above) for end in value]
        law = "uniform"
    else:
        number = section.number(key, low=low, high=high, above=above)
        return Spread(number, number)
    if ends[0] > ends[1]:
        section.fault(key, f"must rise from low to high, got {ends[0]:g} to {ends[1]:g}")
    if law == "log-uniform" and ends[0] <= 0:
        section.fault(key, f"must be above 0 for the law log-uniform, got a low of {ends[0]:g}")
        return Spread(1.0, 1.0)
    return Spread(ends[0], ends[1], law)
