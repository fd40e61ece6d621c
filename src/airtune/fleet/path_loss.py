"""Mean loss of power over distance, in dB: 3GPP urban macro and micro, a plain macro, log-distance.

Sources: 3GPP TR 38.901 v17, table 7.4.1-1 (losses, shadowing) and table 7.4.2-1 (line-of-sight
probability), for a device at most 13 m high; 3GPP TR 36.814 table A.2.1.1-2 for the macro form at
2 GHz that the wireless learning papers use. Frequencies in GHz, distances in metres. Distances
below the model's validity (10 m) are taken as 10 m; buildings and vehicles are not entered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from airtune.plan import Bools, Floats

PathLossModel = Literal["uma", "umi", "macro", "log-distance"]
Sight = Literal["draw", "always", "never"]

PATH_LOSS_MODELS: tuple[PathLossModel, ...] = ("uma", "umi", "macro", "log-distance")
SIGHTS: tuple[Sight, ...] = ("draw", "always", "never")

_LIGHT_M_PER_S = 299_792_458.0
_NEAREST_M = 10.0
_EFFECTIVE_ENVIRONMENT_M = 1.0
_BASE_HEIGHT_M = {"uma": 25.0, "umi": 10.0}
_SHADOWING_DB = {"uma": (4.0, 6.0), "umi": (4.0, 7.82)}
"""Standard deviation with and without line of sight."""
_SIGHT_DECAY_M = {"uma": 63.0, "umi": 36.0}


@dataclass(frozen=True, slots=True)
class PathLoss:
    """Which model, with its few numbers."""

    model: PathLossModel = "macro"
    carrier_ghz: float = 3.5
    """For uma, umi and the reference of log-distance; the macro form is for 2 GHz."""
    exponent: float = 3.0
    """Of the distance (log-distance only)."""
    reference_db: float | None = None
    """Loss at 1 m (log-distance only); None = free space at the carrier."""
    device_height_m: float = 1.5
    line_of_sight: Sight = "draw"
    """uma and umi: drawn by the model's probability of the distance, or the same for all."""

    @property
    def has_sight(self) -> bool:
        """Whether the model tells line of sight from its absence."""
        return self.model in _SIGHT_DECAY_M

    def loss_db(self, distance_m: Floats, is_sight: Bools) -> Floats:
        """Return the mean loss.

        Args:
            distance_m: horizontal distance, shape (n,).
            is_sight: whether the base station is in sight, shape (n,); only uma and umi ask.

        Returns:
            Loss in dB, shape (n,).
        """
        if self.model == "macro":
            return macro_db(distance_m)
        if self.model == "log-distance":
            return log_distance_db(distance_m, self.exponent, self.reference_loss_db)
        losses = urban_macro_db if self.model == "uma" else urban_micro_db
        return losses(distance_m, is_sight, self.carrier_ghz, self.device_height_m)

    @property
    def reference_loss_db(self) -> float:
        """Loss at 1 m that log-distance starts from."""
        if self.reference_db is not None:
            return self.reference_db
        return float(20.0 * np.log10(4.0 * np.pi * self.carrier_ghz * 1e9 / _LIGHT_M_PER_S))

    def sight_probability(self, distance_m: Floats) -> Floats:
        """Return the probability of line of sight, shape (n,); 0 where the model has none."""
        if not self.has_sight or self.line_of_sight == "never":
            return np.zeros_like(distance_m)
        if self.line_of_sight == "always":
            return np.ones_like(distance_m)
        return sight_probability(distance_m, _SIGHT_DECAY_M[self.model])

    def shadowing_db(self, is_sight: Bools) -> Floats:
        """Return the model's own standard deviation of shadowing, shape (n,)."""
        if self.has_sight:
            with_sight, without = _SHADOWING_DB[self.model]
            return np.where(is_sight, with_sight, without)
        return np.full(is_sight.shape, 8.0)


MACRO = PathLoss(carrier_ghz=2.0)


def macro_db(distance_m: Floats) -> Floats:
    """Return `128.1 + 37.6 log10(d / km)`, the macro cell at 2 GHz of TR 36.814.

    >>> macro_db(np.array([1000.0, 100.0])).round(1).tolist()
    [128.1, 90.5]
    """
    return 128.1 + 37.6 * np.log10(np.maximum(distance_m, _NEAREST_M) / 1000.0)


def log_distance_db(distance_m: Floats, exponent: float, reference_db: float) -> Floats:
    """Return `reference + 10 n log10(d / 1 m)`, never less than the loss at 1 m."""
    return reference_db + 10.0 * exponent * np.log10(np.maximum(distance_m, 1.0))


def sight_probability(distance_m: Floats, decay_m: float) -> Floats:
    """Return TR 38.901's probability of line of sight: 1 to 18 m, then falling.

    `18 / d + exp(-d / decay) (1 - 18 / d)`, with decay 63 m (macro) or 36 m (micro).
    """
    near = 18.0 / np.maximum(distance_m, 18.0)
    return np.asarray(near + np.exp(-distance_m / decay_m) * (1.0 - near))


def urban_macro_db(
    distance_m: Floats, is_sight: Bools, carrier_ghz: float, device_height_m: float = 1.5
) -> Floats:
    """Return the UMa loss of TR 38.901 for a base station 25 m high, shape (n,)."""
    flat, height = np.maximum(distance_m, _NEAREST_M), _BASE_HEIGHT_M["uma"]
    slant = np.hypot(flat, height - device_height_m)
    near = 28.0 + 22.0 * np.log10(slant) + 20.0 * np.log10(carrier_ghz)
    corner = _breakpoint_m(height, device_height_m, carrier_ghz)
    far = (
        28.0
        + 40.0 * np.log10(slant)
        + 20.0 * np.log10(carrier_ghz)
        - 9.0 * np.log10(corner**2 + (height - device_height_m) ** 2)
    )
    sight = np.where(flat <= corner, near, far)
    hidden = (
        13.54
        + 39.08 * np.log10(slant)
        + 20.0 * np.log10(carrier_ghz)
        - 0.6 * (device_height_m - 1.5)
    )
    return np.asarray(np.where(is_sight, sight, np.maximum(sight, hidden)))


def urban_micro_db(
    distance_m: Floats, is_sight: Bools, carrier_ghz: float, device_height_m: float = 1.5
) -> Floats:
    """Return the UMi street-canyon loss of TR 38.901 for a base station 10 m high, shape (n,)."""
    flat, height = np.maximum(distance_m, _NEAREST_M), _BASE_HEIGHT_M["umi"]
    slant = np.hypot(flat, height - device_height_m)
    near = 32.4 + 21.0 * np.log10(slant) + 20.0 * np.log10(carrier_ghz)
    corner = _breakpoint_m(height, device_height_m, carrier_ghz)
    far = (
        32.4
        + 40.0 * np.log10(slant)
        + 20.0 * np.log10(carrier_ghz)
        - 9.5 * np.log10(corner**2 + (height - device_height_m) ** 2)
    )
    sight = np.where(flat <= corner, near, far)
    hidden = (
        22.4 + 35.3 * np.log10(slant) + 21.3 * np.log10(carrier_ghz) - 0.3 * (device_height_m - 1.5)
    )
    return np.asarray(np.where(is_sight, sight, np.maximum(sight, hidden)))


def _breakpoint_m(base_height_m: float, device_height_m: float, carrier_ghz: float) -> float:
    """Return where the ground reflection takes over: `4 (h_bs - 1)(h_ut - 1) f / c`."""
    base = base_height_m - _EFFECTIVE_ENVIRONMENT_M
    device = device_height_m - _EFFECTIVE_ENVIRONMENT_M
    return 4.0 * base * device * carrier_ghz * 1e9 / _LIGHT_M_PER_S
