"""A class of devices as a fleet file describes it: counts, links and spreads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from airtune.fleet.catalogue import DEVICE_KINDS, DeviceKind
from airtune.fleet.modes import NO_MODES, ModePlan
from airtune.fleet.section import SettingsSection, as_number, nearest
from airtune.fleet.spread import ONE, PLACED_BY_LINK, USUAL_DBM, Spread, read_spread
from airtune.fleet.truth import DECLARED, TruthPlan
from airtune.units import GIB

PRECISIONS = ("bfloat16", "float16", "4bit")
"""In which a device may train at another speed than in float32."""


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """Devices of one kind: how many, on which links, and the spreads of their numbers."""

    name: str
    count: int
    links: tuple[str, ...]
    """Dealt out in turn."""
    flops_per_s: Spread
    memory_bytes: Spread
    power_w: Spread
    transmit_dbm: Spread = USUAL_DBM
    availability: Spread = ONE
    distance_m: Spread = PLACED_BY_LINK
    """NaN = the link places the device."""
    modes: ModePlan = NO_MODES
    truth: TruthPlan = DECLARED
    precision: tuple[tuple[str, float], ...] = ()
    """Speed in a precision over that in float32."""

    def device_names(self, count: int) -> list[str]:
        """Return the names of this class's devices: its own name, or numbered from 1."""
        if count == 1:
            return [self.name]
        return [f"{self.name}-{number}" for number in range(1, count + 1)]


def read_class(section: SettingsSection, links: Sequence[str]) -> DeviceClass:
    """Read one entry of `devices`.

    Args:
        section: the entry; faults are noted there.
        links: names of the fleet's links.
    """
    speed, memory, power = _usual(_read_kind(section))
    name = section.text("name")
    entry = DeviceClass(
        name=name,
        count=section.whole("count", 1, low=1),
        links=_read_links(section, links),
        flops_per_s=read_spread(section, "gflops_per_s", speed, above=0.0).scaled(1e9),
        memory_bytes=read_spread(section, "memory_gib", memory, above=0.0).scaled(GIB),
        power_w=read_spread(section, "power_w", power, above=0.0),
        transmit_dbm=read_spread(section, "transmit_power_dbm", USUAL_DBM, low=-40.0, high=60.0),
        availability=read_spread(section, "availability", ONE, high=1.0),
        distance_m=read_spread(section, "distance_m", PLACED_BY_LINK, above=0.0),
        modes=_read_modes(section),
        truth=_read_truth(section),
        precision=_read_precision(section),
    )
    section.close()
    return entry


def _read_kind(section: SettingsSection) -> DeviceKind | None:
    if not section.has("device"):
        return None
    name = section.text("device")
    kind = DEVICE_KINDS.get(name)
    if kind is None and name:
        known = tuple(DEVICE_KINDS)
        hint = nearest(name, known) or f"; known are {', '.join(known)}"
        section.fault("device", f"is not in the catalogue: {name!r}{hint}")
    # An unknown kind is one fault; its missing numbers are not three more.
    return kind or DeviceKind(1.0, 1.0, 1.0)


def _usual(kind: DeviceKind | None) -> tuple[Spread, Spread, Spread] | tuple[None, None, None]:
    """Return speed in GFLOP/s, memory in GiB and power of a kind, as defaults."""
    if kind is None:
        return None, None, None
    speed, memory = kind.flops_per_s / 1e9, kind.memory_bytes / GIB
    return Spread(speed, speed), Spread(memory, memory), Spread(kind.power_w, kind.power_w)


def _read_links(section: SettingsSection, links: Sequence[str]) -> tuple[str, ...]:
    if not section.has("link") and len(links) <= 1:
        return tuple(links)
    named = section.texts("link")
    if not named:
        section.fault("link", f"is missing; name one or more of {', '.join(links)}")
    for name in named:
        if name not in links:
            hint = nearest(name, links) or f"; links are {', '.join(links) or 'none'}"
            section.fault("link", f"names no link of this fleet: {name!r}{hint}")
    return named


def _read_modes(section: SettingsSection) -> ModePlan:
    if not section.has("modes"):
        return NO_MODES
    modes = section.section("modes")
    listed = modes.get("factors")
    values = [as_number(value) for value in listed] if isinstance(listed, list) else []
    factors = tuple(value for value in values if value is not None and 0 < value <= 10)
    if not factors or len(factors) != len(values):
        modes.fault("factors", f"must be a list of numbers in (0, 10], got {listed!r}")
    every = modes.whole("every_rounds", 20, low=1)
    modes.close()
    return ModePlan(factors or (1.0,), every)


def _read_truth(section: SettingsSection) -> TruthPlan:
    if not section.has("truth"):
        return DECLARED
    truth = section.section("truth")
    speed, rate = (read_spread(truth, key, ONE, above=0.0, high=100.0) for key in ("speed", "rate"))
    every = truth.whole("every_rounds", 0)
    truth.close()
    return TruthPlan(speed, rate, every)


def _read_precision(section: SettingsSection) -> tuple[tuple[str, float], ...]:
    if not section.has("precision"):
        return ()
    inner = section.section("precision")
    found = tuple(
        (name, inner.number(name, above=0.0, high=100.0)) for name in PRECISIONS if inner.has(name)
    )
    if not found:
        inner.fault("", f"must name one of {', '.join(PRECISIONS)}")
    inner.close()
    return found
