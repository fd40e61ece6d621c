"""Small-scale block fading: the power gain a device keeps for a round or for a slot.

The gains of a block are drawn by key, independently of every other block and of the order of
calls. Both directions of a link see the same gain (reciprocity).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from airtune.plan import Floats

FadingModel = Literal["none", "rayleigh", "rician"]
Every = Literal["round", "slot"]

FADING_MODELS: tuple[FadingModel, ...] = ("none", "rayleigh", "rician")
EVERY: tuple[Every, ...] = ("round", "slot")


@dataclass(frozen=True, slots=True)
class Fading:
    """Which fading, and for how long it stands still."""

    model: FadingModel = "none"
    k_db: float = 6.0
    """Power of the direct path over that of the scattered ones (rician only)."""
    every: Every = "round"

    def describe(self) -> str:
        """Return the assumption in a few words.

        >>> Fading("rician", 6.0).describe()
        'Rician fading (K 6 dB) each round'
        """
        if self.model == "none":
            return "no fading"
        factor = f" (K {self.k_db:g} dB)" if self.model == "rician" else ""
        return f"{self.model.capitalize()} fading{factor} each {self.every}"

    def gains(self, random: np.random.Generator, count: int) -> Floats:
        """Return power gains of mean 1, shape (count,).

        >>> Fading("none").gains(np.random.default_rng(0), 2).tolist()
        [1.0, 1.0]
        """
        if self.model == "rayleigh":
            return rayleigh_gains(random, count)
        if self.model == "rician":
            return rician_gains(random, count, 10.0 ** (self.k_db / 10.0))
        return np.ones(count)


STILL = Fading()


def rayleigh_gains(random: np.random.Generator, count: int) -> Floats:
    """Return `|h|^2` of a unit complex Gaussian, which is exponential with mean 1."""
    return random.standard_exponential(count)


def rician_gains(random: np.random.Generator, count: int, k: float) -> Floats:
    """Return `|sqrt(k/(k+1)) + h sqrt(1/(k+1))|^2` with h a unit complex Gaussian.

    Mean 1, variance `(2k + 1) / (k + 1)^2`; k = 0 is Rayleigh fading.
    """
    scatter = np.sqrt(0.5 / (k + 1.0))
    real, imaginary = scatter * random.standard_normal((2, count))
    return np.asarray((np.sqrt(k / (k + 1.0)) + real) ** 2 + imaginary**2)
