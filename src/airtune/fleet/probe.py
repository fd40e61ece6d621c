"""Probe files: what one device measured of itself, as JSON, and a folder of them as a fleet.

A probe file is one object:

    schema         1
    name           text, different for every device
    flops_per_s    number above 0: achieved in training (a block forward and backward)
    memory_bytes   number above 0: left for training
    up_mbps        number above 0: to the server, with the link to itself
    down_mbps      number above 0: from the server
    power_w        number above 0, optional (default 10): drawn while computing
    transmit_power_dbm   number, optional (default 20)
    availability   number in [0, 1], optional (default 1)
    kind           text, optional: what the device is, for tables (default: its name)
    link           text, optional: devices that name the same link share its air time;
                   absent = a link of its own
    details        object, optional: anything else worth keeping; not read
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from airtune.errors import FleetError
from airtune.fleet.capacity import CapacityChannel
from airtune.fleet.draw import rescale
from airtune.fleet.fleet import Fleet, ServerSpec
from airtune.fleet.modes import NO_MODES, tabulate_modes
from airtune.fleet.rates import SHANNON
from airtune.fleet.section import SettingsSection, raise_faults
from airtune.plan import LinkSpec
from airtune.units import dbm_to_watt

PROBE_SCHEMA = 1
OWN_LINK = "own connection"
"""Name of the dedicated link of every device that names none."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One device as it measured itself."""

    name: str
    kind: str
    link: str
    flops_per_s: float
    memory_bytes: float
    power_w: float
    transmit_power_w: float
    availability: float
    up_bps: float
    down_bps: float


def read_probe(path: Path) -> Probe:
    """Read one probe file.

    Raises:
        FleetError: if it cannot be read or is not a probe; every fault is named.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FleetError(
            f"probe file {path} cannot be read: {error}; probe the device again"
        ) from error
    return check_probe(data, f"probe file {path}")


def check_probe(data: object, what: str) -> Probe:
    """Return what a probe file's content says.

    Args:
        data: as JSON reads it.
        what: it is called in errors.

    Raises:
        FleetError: if it is not a probe; every fault is named.
    """
    section = SettingsSection(data, "", [])
    schema = section.number("schema", low=1)
    if not section.faults and schema != PROBE_SCHEMA:
        raise FleetError(
            f"{what} has schema {schema:g}, this version reads {PROBE_SCHEMA}; "
            "probe the device again"
        )
    name = section.text("name")
    section.get("details")
    probe = Probe(
        name=name,
        kind=section.text("kind", name or "device"),
        link=section.text("link", OWN_LINK),
        flops_per_s=section.number("flops_per_s", above=0.0),
        memory_bytes=section.number("memory_bytes", above=0.0),
        power_w=section.number("power_w", 10.0, above=0.0),
        transmit_power_w=dbm_to_watt(section.number("transmit_power_dbm", 20.0, low=-40, high=60)),
        availability=section.number("availability", 1.0, low=0.0, high=1.0),
        up_bps=section.number("up_mbps", above=0.0) * 1e6,
        down_bps=section.number("down_mbps", above=0.0) * 1e6,
    )
    section.close()
    raise_faults(what, section.faults)
    return probe


def read_probes(source: Path) -> list[Probe]:
    """Read one probe file, or every `*.json` of a folder in the order of their names.

    Raises:
        FleetError: if a folder holds none, or with the faults of every file.
    """
    paths = sorted(source.glob("*.json")) if source.is_dir() else [source]
    if not paths:
        raise FleetError(
            f"fleet folder {source} holds no probe file (*.json); probe a device first"
        )
    probes, faults = [], []
    for path in paths:
        try:
            probes.append(read_probe(path))
        except FleetError as error:
            faults.append(str(error))
    raise_faults(f"fleet folder {source}", faults)
    return probes


def fleet_from_probes(
    probes: Sequence[Probe], *, name: str, devices: int | None, seed: int
) -> Fleet:
    """Return the fleet of the probed devices: nothing is drawn but who drops out.

    Args:
        probes: at least one, in the order of the fleet.
        name: of the fleet.
        devices: how many in all; more than were probed = the same ones again; None = as probed.
        seed: of dropouts.

    Raises:
        FleetError: if two devices have one name.
    """
    rows = _rescale_probes(name, probes, devices)
    links = list(dict.fromkeys(probe.link for probe in rows))
    number = {link: index for index, link in enumerate(links)}
    link_of = np.array([number[probe.link] for probe in rows], np.int64)
    up, down = np.array([[probe.up_bps, probe.down_bps] for probe in rows]).T
    places = [np.flatnonzero(link_of == index) for index in range(len(links))]
    return Fleet(
        name=name,
        names=tuple(probe.name for probe in rows),
        kinds=tuple(probe.kind for probe in rows),
        link=link_of,
        flops_per_s=np.array([probe.flops_per_s for probe in rows]),
        memory_bytes=np.array([probe.memory_bytes for probe in rows]),
        power_w=np.array([probe.power_w for probe in rows]),
        transmit_power_w=np.array([probe.transmit_power_w for probe in rows]),
        availability=np.array([probe.availability for probe in rows]),
        modes=tabulate_modes([NO_MODES], np.zeros(len(rows), np.int64)),
        specs=tuple(_spec(link) for link in links),
        channels=tuple(
            CapacityChannel(link, index, up[index], down[index])
            for link, index in zip(links, places, strict=True)
        ),
        server=ServerSpec(),
        assumptions=_assumptions(name, len(probes), len(rows)),
        seed=seed,
    )


def _rescale_probes(name: str, probes: Sequence[Probe], devices: int | None) -> list[Probe]:
    """Return one probe a device; those used more than once are numbered."""
    counts = rescale([1] * len(probes), devices)
    rows = []
    for probe, count in zip(probes, counts, strict=True):
        numbered = [f"{probe.name}-{number}" for number in range(1, count + 1)]
        rows += [
            replace(probe, name=one) for one in (numbered if count > 1 else [probe.name] * count)
        ]
    known = Counter(probe.name for probe in rows)
    if len(known) < len(rows):
        twice = known.most_common(1)[0][0]
        raise FleetError(
            f"fleet {name!r} names two devices {twice!r}; rename one in its probe file"
        )
    return rows


def _spec(link: str) -> LinkSpec:
    kind: Literal["shared", "dedicated"] = "dedicated" if link == OWN_LINK else "shared"
    return LinkSpec(link, kind, 0.0, 0.0, SHANNON, None)


def _assumptions(name: str, probed: int, drawn: int) -> tuple[str, ...]:
    line = f"fleet {name}: {probed} probed devices, speeds and links as steady as when probed"
    if drawn == probed:
        return (line,)
    return (line, f"fleet {name}: rescaled from {probed} to {drawn} devices, links unchanged")
