"""A whole fleet as its file describes it, before any device is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from airtune.errors import FleetError
from airtune.fleet.device import DeviceClass, read_class
from airtune.fleet.fleet import ServerSpec
from airtune.fleet.link import LinkPlan, read_link
from airtune.fleet.section import SettingsSection, raise_faults
from airtune.units import GIB

NO_BANDWIDTH = (
    "fleet {name!r} has no shared radio link, so bandwidth_mhz {mhz:g} cannot be set; leave it out, "
    "or choose a fleet with one, such as pocket or cell-10"
)


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """What a fleet file says, checked."""

    name: str
    summary: str
    links: tuple[LinkPlan, ...]
    classes: tuple[DeviceClass, ...]
    server: ServerSpec
    assumptions: tuple[str, ...]
    """The file's own lines."""

    def on_bandwidth(self, mhz: float) -> FleetSettings:
        """Return the settings with another bandwidth of the one shared radio link.

        Args:
            mhz: up and down alike.

        Raises:
            FleetError: if no link is a shared radio link, or several are.
        """
        shared = [plan.spec.name for plan in self.links if plan.is_shared_radio]
        if not shared:
            raise FleetError(NO_BANDWIDTH.format(name=self.name, mhz=mhz))
        if len(shared) > 1:
            raise FleetError(
                f"bandwidth_mhz {mhz:g} fits one shared radio link, and fleet {self.name!r} has "
                f"{', '.join(shared)}; set up_bandwidth_mhz of each in the fleet"
            )
        links = (
            plan.on_bandwidth(mhz * 1e6) if plan.is_shared_radio else plan for plan in self.links
        )
        return replace(self, links=tuple(links))


def read_settings(data: Mapping[str, object], *, name: str) -> FleetSettings:
    """Read and check the mapping of a fleet file.

    Args:
        data: as YAML gives it.
        name: what the fleet is called unless the file says.

    Raises:
        FleetError: with every fault found.
    """
    faults: list[str] = []
    section = SettingsSection(data, "", faults)
    known = [(link, inner, read_link(link, inner)) for link, inner in section.sections("links")]
    links = tuple(plan for _, _, plan in known if plan is not None)
    classes = [
        (inner, read_class(inner, [link for link, _, _ in known]))
        for inner in section.listed("devices")
    ]
    for inner, entry in classes:
        _check_distance(inner, entry, links)
    settings = FleetSettings(
        name=section.text("name", name),
        summary=section.text("summary", "no summary"),
        links=links,
        classes=tuple(entry for _, entry in classes),
        server=_read_server(section.section("server")),
        assumptions=section.texts("assumptions"),
    )
    section.close()
    _check_names(section, settings.classes)
    raise_faults(f"fleet {settings.name!r}", faults)
    return settings


def _read_server(section: SettingsSection) -> ServerSpec:
    usual = ServerSpec()
    server = ServerSpec(
        flops_per_s=section.number("gflops_per_s", usual.flops_per_s / 1e9, above=0.0) * 1e9,
        memory_bytes=section.number("memory_gib", usual.memory_bytes / GIB, above=0.0) * GIB,
    )
    section.close()
    return server


def _check_names(section: SettingsSection, classes: tuple[DeviceClass, ...]) -> None:
    twice = [name for name, times in Counter(entry.name for entry in classes).items() if times > 1]
    if twice:
        section.fault("devices", f"must each have a name of their own, got {twice[0]!r} twice")


def _check_distance(
    section: SettingsSection, entry: DeviceClass, links: tuple[LinkPlan, ...]
) -> None:
    radio = {plan.spec.name for plan in links if plan.spec.up_bandwidth_hz > 0}
    if np.isfinite(entry.distance_m.low) and not set(entry.links) & radio:
        section.fault(
            "distance_m", "counts on a radio link only, and this class is on none; remove it"
        )
