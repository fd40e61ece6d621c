"""A radio link: devices around a base station, with path loss, shadowing and block fading.

The state of a device is received power over noise density, `s = p g / (N0 F M)` in hertz, with
noise figure F and interference margin M; the rate on b hertz is then `b log2(1 + s / b)`. The
uplink is received by the base station from the device's power, the downlink by the device from
the base station's power over the whole downlink band. Place and shadowing are drawn once; only
fading changes. Small-scale gains are equal in both directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.fleet.fading import EVERY, FADING_MODELS, STILL, Fading
from airtune.fleet.moment import Members, Moment
from airtune.fleet.path_loss import MACRO, PATH_LOSS_MODELS, SIGHTS, PathLoss
from airtune.fleet.section import SettingsSection
from airtune.keys import generator
from airtune.plan import Floats, Ints
from airtune.units import dbm_to_watt


@dataclass(frozen=True, slots=True)
class NoiseBudget:
    """Noise density with what worsens it."""

    density_dbm_hz: float = -174.0
    """Thermal noise at room temperature."""
    base_station_figure_db: float = 5.0
    device_figure_db: float = 9.0
    interference_margin_db: float = 0.0

    def up_w_hz(self) -> float:
        """Return the noise density at the base station's receiver in W/Hz."""
        return self._density(self.base_station_figure_db)

    def down_w_hz(self) -> float:
        """Return the noise density at a device's receiver in W/Hz."""
        return self._density(self.device_figure_db)

    def _density(self, figure_db: float) -> float:
        return dbm_to_watt(self.density_dbm_hz + figure_db + self.interference_margin_db)


@dataclass(frozen=True, slots=True)
class RadioMedium:
    """Settings of a radio link."""

    up_bandwidth_hz: float
    down_bandwidth_hz: float
    radius_m: float = 300.0
    """Devices stand uniformly on the disc between `min_distance_m` and here."""
    min_distance_m: float = 10.0
    path_loss: PathLoss = MACRO
    shadowing_db: float | None = None
    """Standard deviation; None = the path-loss model's own."""
    fading: Fading = STILL
    base_station_w: float = 20.0
    noise: NoiseBudget = NoiseBudget()
    slot_s: float | None = None

    def describe(self) -> str:
        """Return the assumptions in a few words."""
        shadowing = "of that model" if self.shadowing_db is None else f"{self.shadowing_db:g} dB"
        margin = self.noise.interference_margin_db
        return (
            f"{self.up_bandwidth_hz / 1e6:g} MHz up, {self.down_bandwidth_hz / 1e6:g} MHz down, "
            f"{self.path_loss.model} path loss to {self.radius_m:g} m, shadowing {shadowing}, "
            f"{self.fading.describe()}, interference margin {margin:g} dB"
        )

    def place(self, link: str, members: Members, seed: int) -> RadioChannel:
        """Return the link with its devices placed and shadowed, drawn by (seed, link)."""
        distance = self._distances(link, members, seed)
        count = distance.shape[0]
        chance = self.path_loss.sight_probability(distance)
        sight = generator(seed, "sight", link).random(count) < chance
        own = self.path_loss.shadowing_db(sight)
        deviation = own if self.shadowing_db is None else self.shadowing_db
        shadowing = deviation * generator(seed, "shadowing", link).standard_normal(count)
        gain = 10.0 ** (-(self.path_loss.loss_db(distance, sight) + shadowing) / 10.0)
        return RadioChannel(
            link=link,
            device=members.device,
            distance_m=distance,
            up_signal_hz=members.transmit_power_w * gain / self.noise.up_w_hz(),
            down_signal_hz=self.base_station_w * gain / self.noise.down_w_hz(),
            fading=self.fading,
            slot_s=self.slot_s,
        )

    def _distances(self, link: str, members: Members, seed: int) -> Floats:
        """Uniform over the disc's area, or where the device's class says."""
        area = generator(seed, "place", link).random(members.device.shape[0])
        inner, outer = self.min_distance_m**2, self.radius_m**2
        placed = np.sqrt(inner + area * (outer - inner))
        return np.where(np.isnan(members.distance_m), placed, members.distance_m)


@dataclass(frozen=True, slots=True)
class RadioChannel:
    """A radio link with its devices placed; columns of shape (n,), means over fading."""

    link: str
    device: Ints
    distance_m: Floats
    up_signal_hz: Floats
    down_signal_hz: Floats
    fading: Fading
    slot_s: float | None

    @property
    def is_radio(self) -> bool:
        """True: the columns are received power over noise density in hertz."""
        return True

    def at(self, moment: Moment) -> tuple[Floats, Floats]:
        """Return the faded uplink and downlink signal in hertz, each of shape (n,)."""
        block = moment.block(self.fading.every, self.slot_s)
        random = generator(moment.seed, "fading", self.link, moment.round, block)
        gains = self.fading.gains(random, self.device.shape[0])
        return self.up_signal_hz * gains, self.down_signal_hz * gains


def read_radio(section: SettingsSection, slot_s: float | None) -> RadioMedium:
    """Read the settings of a radio link; faults are noted in the section."""
    up = section.number("up_bandwidth_mhz", above=0.0) * 1e6
    least = section.number("min_distance_m", 10.0, above=0.0)
    radius = section.number("radius_m", 300.0, above=0.0)
    if radius < least:
        section.fault("radius_m", f"must be at least min_distance_m {least:g}, got {radius:g}")
    medium = RadioMedium(
        up_bandwidth_hz=up,
        down_bandwidth_hz=section.number("down_bandwidth_mhz", up / 1e6, above=0.0) * 1e6,
        radius_m=radius,
        min_distance_m=least,
        path_loss=_read_path_loss(section.section("path_loss")),
        shadowing_db=section.number("shadowing_db", low=0.0)
        if section.has("shadowing_db")
        else None,
        fading=_read_fading(section.section("fading"), slot_s),
        base_station_w=dbm_to_watt(section.number("base_station_dbm", 43.0, low=-30, high=80)),
        noise=_read_noise(section.section("noise")),
        slot_s=slot_s,
    )
    section.close()
    return medium


def _read_path_loss(section: SettingsSection) -> PathLoss:
    model = section.choice("model", PATH_LOSS_MODELS, "macro")
    usual = PathLoss()
    loss = PathLoss(
        model=model,
        carrier_ghz=section.number(
            "carrier_ghz", 2.0 if model == "macro" else 3.5, low=0.5, high=100
        ),
        exponent=section.number("exponent", usual.exponent, low=1.0, high=8.0),
        reference_db=section.number("reference_db", low=0.0)
        if section.has("reference_db")
        else None,
        device_height_m=section.number("device_height_m", 1.5, low=1.5, high=13.0),
        line_of_sight=section.choice("line_of_sight", SIGHTS, "draw"),
    )
    if model == "macro" and loss.carrier_ghz != 2.0:
        section.fault(
            "carrier_ghz",
            f"must be 2 for the macro model, got {loss.carrier_ghz:g}; use uma for other carriers",
        )
    section.close()
    return loss


def _read_fading(section: SettingsSection, slot_s: float | None) -> Fading:
    fading = Fading(
        model=section.choice("model", FADING_MODELS, "rayleigh"),
        k_db=section.number("k_db", 6.0, low=-40.0, high=60.0),
        every=section.choice("every", EVERY, "round"),
    )
    if fading.every == "slot" and slot_s is None:
        section.fault("every", "is slot, but the link has no slot_s; set it in seconds")
    section.close()
    return fading


def _read_noise(section: SettingsSection) -> NoiseBudget:
    usual = NoiseBudget()
    noise = NoiseBudget(
        density_dbm_hz=section.number("density_dbm_hz", usual.density_dbm_hz, low=-200, high=-100),
        base_station_figure_db=section.number(
            "base_station_figure_db", usual.base_station_figure_db, low=0.0, high=30.0
        ),
        device_figure_db=section.number(
            "device_figure_db", usual.device_figure_db, low=0.0, high=30.0
        ),
        interference_margin_db=section.number("interference_margin_db", 0.0, low=0.0, high=60.0),
    )
    section.close()
    return noise
