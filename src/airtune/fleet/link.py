"""One link of a fleet as a file describes it: its kind, its medium, its rate model, its slot."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from airtune.fleet.capacity import read_capacity
from airtune.fleet.moment import Medium
from airtune.fleet.radio import RadioMedium, read_radio
from airtune.fleet.rates import NR, SHANNON
from airtune.fleet.section import SettingsSection
from airtune.fleet.traced import TraceMedium, read_traced
from airtune.plan import LinkSpec, RateModel

Kind = Literal["shared", "dedicated"]
KINDS: tuple[Kind, ...] = ("shared", "dedicated")
RATES: tuple[Literal["shannon", "nr"], ...] = ("shannon", "nr")
MEDIA = ("radio", "capacity", "traces")

TRACE_SLOT_S = 1.0
"""How often a traced link is looked at unless its `slot_s` says otherwise."""


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """What others need to know of a link, and what it is made of."""

    spec: LinkSpec
    medium: Medium

    def describe(self) -> str:
        """Return the link's assumptions in one line, without its name."""
        divided = "shared" if self.spec.kind == "shared" else "dedicated"
        slot = "" if self.spec.slot_s is None else f", slots of {self.spec.slot_s:g} s"
        rate = f", {_describe_rate(self.spec.rate)}" if self.spec.up_bandwidth_hz else ""
        return f"{divided}, {self.medium.describe()}{rate}{slot}"

    @property
    def is_shared_radio(self) -> bool:
        """Whether the link has hertz that its devices divide."""
        return self.spec.kind == "shared" and isinstance(self.medium, RadioMedium)

    @property
    def trace_s(self) -> float:
        """Length of the longest measured trace that it follows; 0 = none."""
        if not isinstance(self.medium, TraceMedium):
            return 0.0
        return max(trace.period_s for trace in self.medium.traces)

    def on_bandwidth(self, hz: float) -> LinkPlan:
        """Return a radio link with this bandwidth, up and down alike; another link as it is."""
        if not isinstance(self.medium, RadioMedium):
            return self
        return LinkPlan(
            replace(self.spec, up_bandwidth_hz=hz, down_bandwidth_hz=hz),
            replace(self.medium, up_bandwidth_hz=hz, down_bandwidth_hz=hz),
        )


def read_link(name: str, section: SettingsSection) -> LinkPlan | None:
    """Read one link; None where it has no usable medium. Faults are noted in the section."""
    kind = section.choice("kind", KINDS)
    media = [medium for medium in MEDIA if section.has(medium)]
    slot_s = section.number("slot_s", above=0.0) if section.has("slot_s") else None
    if slot_s is None and media == ["traces"]:
        slot_s = TRACE_SLOT_S
    rate = _read_rate(section.section("rate"))
    if section.has("rate") and media != ["radio"]:
        section.fault(
            "rate", "belongs to radio links; a given or measured capacity is a rate already"
        )
    section.close()
    if len(media) != 1:
        got = " and ".join(media) if media else "none"
        section.fault("", f"must have exactly one of {', '.join(MEDIA)}, got {got}")
        return None
    medium: Medium | None
    if media == ["radio"]:
        medium = read_radio(section.section("radio"), slot_s)
    elif media == ["capacity"]:
        medium = read_capacity(section.section("capacity"), slot_s)
    else:
        medium = read_traced(section.section("traces"), is_shared=kind == "shared")
    if medium is None:
        return None
    spec = LinkSpec(name, kind, medium.up_bandwidth_hz, medium.down_bandwidth_hz, rate, slot_s)
    return LinkPlan(spec, medium)


def _read_rate(section: SettingsSection) -> RateModel:
    usual = NR if section.choice("kind", RATES, "shannon") == "nr" else SHANNON
    if usual is SHANNON:
        section.close()
        return SHANNON
    rate = RateModel(
        kind="nr",
        cap_bits_per_s_hz=section.number("cap_bits_per_s_hz", usual.cap_bits_per_s_hz, above=0.0),
        efficiency=section.number("efficiency", usual.efficiency, above=0.0, high=1.0),
        usable=section.number("usable", usual.usable, above=0.0, high=1.0),
    )
    section.close()
    return rate


def _describe_rate(rate: RateModel) -> str:
    if rate.kind == "shannon":
        return "Shannon rate"
    return (
        f"NR-like rate (cap {rate.cap_bits_per_s_hz:g} bit/s/Hz, efficiency {rate.efficiency:g}, "
        f"{rate.usable:.0%} usable)"
    )
