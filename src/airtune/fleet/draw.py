"""From a fleet's settings and a seed to its devices, all in columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from airtune.errors import FleetError
from airtune.fleet.device import PRECISIONS, DeviceClass
from airtune.fleet.fleet import Fleet, ServerSpec
from airtune.fleet.modes import tabulate_modes
from airtune.fleet.moment import Channel, Members
from airtune.fleet.settings import FleetSettings
from airtune.fleet.spread import Spread
from airtune.fleet.truth import DECLARED, Truth
from airtune.keys import generator
from airtune.plan import Floats, Ints
from airtune.units import format_bytes

Column = Literal[
    "flops_per_s", "memory_bytes", "power_w", "transmit_dbm", "availability", "distance_m"
]
Counted = tuple[DeviceClass, int]
"""A class and how many devices of it there are."""


def draw_fleet(settings: FleetSettings, *, devices: int | None, seed: int) -> Fleet:
    """Draw the devices of a fleet and place them on its links.

    Args:
        settings: the checked fleet file.
        devices: how many in all; the classes keep their proportions; None = as the file says.
        seed: the same seed draws the same fleet, and the same links round for round.

    Raises:
        FleetError: if two devices end up with one name.
    """
    counts = rescale([entry.count for entry in settings.classes], devices)
    classes = [pair for pair in zip(settings.classes, counts, strict=True) if pair[1]]
    link = _deal_links(settings, classes)
    power_w = 10.0 ** ((_column(classes, "transmit_dbm", seed) - 30.0) / 10.0)
    members = Members(np.arange(sum(counts)), power_w, _column(classes, "distance_m", seed))
    plans = list(dict.fromkeys(entry.modes for entry, _ in classes))
    plan = _repeat([plans.index(entry.modes) for entry, _ in classes], classes)
    return Fleet(
        name=settings.name,
        names=_names(settings, classes),
        kinds=tuple(entry.name for entry, count in classes for _ in range(count)),
        link=link,
        flops_per_s=_column(classes, "flops_per_s", seed),
        memory_bytes=_column(classes, "memory_bytes", seed),
        power_w=_column(classes, "power_w", seed),
        transmit_power_w=power_w,
        availability=_column(classes, "availability", seed),
        modes=tabulate_modes(plans, plan),
        truth=_truth(classes),
        precision=_precision(classes),
        specs=tuple(plan.spec for plan in settings.links),
        channels=_place(settings, members, link, seed),
        server=settings.server,
        assumptions=_assumptions(settings, sum(counts)),
        seed=seed,
        trace_s=max((plan.trace_s for plan in settings.links), default=0.0),
    )


def rescale(counts: Sequence[int], total: int | None) -> list[int]:
    """Return counts of the given sum in nearly the same proportions, by largest remainder.

    >>> rescale([30, 40, 10], 8), rescale([1, 1, 1], 2)
    ([3, 4, 1], [1, 1, 0])
    """
    if total is None:
        return list(counts)
    exact = np.array(counts) * (total / sum(counts))
    whole = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(-(exact - whole), kind="stable")
    whole[order[: total - int(whole.sum())]] += 1
    return [int(count) for count in whole]


def _names(settings: FleetSettings, classes: Sequence[Counted]) -> tuple[str, ...]:
    names = tuple(name for entry, count in classes for name in entry.device_names(count))
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise FleetError(
            f"fleet {settings.name!r} names two devices {twice!r}; give its classes names that "
            "do not end in a number"
        )
    return names


def _precision(classes: Sequence[Counted]) -> tuple[tuple[str, Floats], ...]:
    """Return the speed in each precision that a class names, over that in float32; 1 elsewhere."""
    counts = [count for _, count in classes]
    found = []
    for name in PRECISIONS:
        factors = [dict(entry.precision).get(name) for entry, _ in classes]
        if any(factors):
            found.append((name, np.repeat([factor or 1.0 for factor in factors], counts)))
    return tuple(found)


def _truth(classes: Sequence[Counted]) -> Truth | None:
    """Return how far devices are from what they declare; None where all are as declared."""
    if all(entry.truth == DECLARED for entry, _ in classes):
        return None
    return Truth(tuple((entry.name, entry.truth, count) for entry, count in classes))


def _deal_links(settings: FleetSettings, classes: Sequence[Counted]) -> Ints:
    """Return each device's index into the links; a class on several links takes them in turn."""
    number = {plan.spec.name: index for index, plan in enumerate(settings.links)}
    dealt = [np.arange(count) % len(entry.links) for entry, count in classes]
    rows = [
        np.array([number[name] for name in entry.links])[hand]
        for (entry, _), hand in zip(classes, dealt, strict=True)
    ]
    return np.concatenate(rows).astype(np.int64)


def _column(classes: Sequence[Counted], column: Column, seed: int) -> Floats:
    """Draw one column of every class, keyed by (seed, class, column); shape (devices,)."""
    parts = []
    for entry, count in classes:
        spread: Spread = getattr(entry, column)
        if spread.is_range:
            parts.append(spread.draw(generator(seed, "device", entry.name, column), count))
        else:
            parts.append(np.full(count, spread.low))
    return np.concatenate(parts)


def _repeat(values: Sequence[int], classes: Sequence[Counted]) -> Ints:
    return np.repeat(np.array(values, np.int64), [count for _, count in classes])


def _place(settings: FleetSettings, members: Members, link: Ints, seed: int) -> tuple[Channel, ...]:
    channels = []
    for index, plan in enumerate(settings.links):
        here = np.flatnonzero(link == index)
        there = Members(here, members.transmit_power_w[here], members.distance_m[here])
        channels.append(plan.medium.place(plan.spec.name, there, seed))
    return tuple(channels)


def _assumptions(settings: FleetSettings, drawn: int) -> tuple[str, ...]:
    """Return the file's own lines, then what its links, server and size take for granted."""
    described = sum(entry.count for entry in settings.classes)
    lines = [*settings.assumptions, *_link_lines(settings), _server_line(settings.server)]
    if drawn != described:
        lines.append(
            f"fleet {settings.name}: rescaled from {described} to {drawn} devices, links unchanged"
        )
    return tuple(lines)


def _link_lines(settings: FleetSettings) -> list[str]:
    """Return one line a kind of link: links that differ in name only are listed together."""
    alike: dict[str, list[str]] = {}
    for plan in settings.links:
        alike.setdefault(plan.describe(), []).append(plan.spec.name)
    return [f"{', '.join(names)}: {words}" for words, names in alike.items()]


def _server_line(server: ServerSpec) -> str:
    return (
        f"edge server: {server.flops_per_s / 1e12:g} TFLOP/s, {format_bytes(server.memory_bytes)}"
    )
