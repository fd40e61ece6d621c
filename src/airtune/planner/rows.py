"""A plan's tables in words, for the screen and for the page alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from airtune.planner.front import Axis, FrontPoint, ParetoFront
from airtune.planner.groups import Group, groups_of, span
from airtune.planner.result import DevicePlan, Plan
from airtune.planner.within import Within
from airtune.planner.words import next_to
from airtune.report.wording import format_joules
from airtune.units import format_bytes, format_number, format_seconds

MOST_ROWS = 12
"""Larger fleets are shown by kind, unless all devices are asked for."""


@dataclass(frozen=True, slots=True)
class WordTable:
    """A table."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def device_rows(plan: Plan, *, every_device: bool = False) -> WordTable:
    """Return a row a device, or a row a kind of a large fleet."""
    is_split = any(row.cut for row in plan.devices)
    columns = (
        "memory",
        "fits",
        "choices",
        "cut or pruned" if is_split else "pruned",
        "rank, steps",
        "download",
        "compute",
        "upload",
        "finish",
        "sent",
        "energy",
    )
    title = f"{plan.method} on {plan.model} ({plan.parameters:,} parameters), a round"
    if every_device or len(plan.devices) <= MOST_ROWS:
        return WordTable(title, ("device", *columns), tuple(map(_device, plan.devices)))
    return WordTable(
        title,
        ("kind", "devices", *columns),
        tuple(map(_group, groups_of(plan.devices))),
        f"{len(plan.devices)} devices by kind, from least to most; --all shows each",
    )


def within_rows(within: Within) -> WordTable:
    """Return what each quantity has to be for the run to end in time."""
    left_out = [
        f"devices left out: {', '.join(one.left_out)}" for one in within.answers if one.left_out
    ]
    said = "what could be reduced" if within.meets else "what would be enough"
    return WordTable(
        f"{within.verdict}; {'no single change is enough' if within.shortfall else f'{said}, each alone'}",
        ("quantity", "in time", "needed", "the run takes", "bottleneck then"),
        tuple(
            (one.vary, "yes" if one.meets else "NO", one.needs, seconds(one.total_s), one.binds)
            for one in within.answers
        ),
        "; ".join(left_out),
    )


def front_rows(front: ParetoFront, *, most: int | None = None) -> WordTable:
    """Return the plans of a front, against the plan as the recipe has it.

    Args:
        front: the plans.
        most: how many are shown, spread evenly; None = all.
    """
    count = len(front.points)
    step = 1.0 if most is None or count <= most else (count - 1) / (most - 1)
    places = dict.fromkeys(round(index * step) for index in range(min(count, most or count)))
    shown = [(front.points[index].label, front.points[index]) for index in places]
    compared = next_to(front.quantile)
    return WordTable(
        f"plans by {', '.join(front.axes)}{compared and f', in {compared}'}: {count} of {front.tried} are Pareto-optimal",
        ("plan", *front.axes, *(["cost"] if front.own.money else [])),
        tuple(
            (label, *_costs(point, front))
            for label, point in [("as the recipe has it", front.own), *shown]
        ),
        "each knob starts at its best quality: no compression, full rank, least pruning; only a run "
        "shows the quality of a plan"
        + (f"; {len(places)} are shown, --json and --page have all" if len(places) < count else ""),
    )


def _costs(point: FrontPoint, front: ParetoFront) -> tuple[str, ...]:
    """Return what a plan takes, against the recipe's own, and its money where there is a tariff."""
    own = front.own
    costs = [
        (FORMS[axis](point.cost(axis)), point.cost(axis), own.cost(axis)) for axis in front.axes
    ]
    if point.money is not None and own.money is not None:
        said = f"{format_number(point.money.total)} {point.money.currency}".rstrip()
        costs.append((said, point.money.total, own.money.total))
    return tuple(
        said if point is own else f"{said} ({_change(value, before)})"
        for said, value, before in costs
    )


def percent(value: float) -> str:
    """Write a share; - where it is not known."""
    return "-" if math.isnan(value) else f"{value:.0%}"


def counts(value: float) -> str:
    """Write a whole number; - where it is not known."""
    return "-" if math.isnan(value) else f"{value:.0f}"


def seconds(value: float) -> str:
    """Write a time; - where there is none."""
    return "-" if not math.isfinite(value) else format_seconds(value)


def sizes(value: float) -> str:
    """Write bytes; - where there are none."""
    return "-" if not math.isfinite(value) else format_bytes(value)


def joules(value: float) -> str:
    """Write the energy of a round; - where it is not known."""
    return "-" if math.isnan(value) else format_joules(value)


FORMS: dict[Axis, Callable[[float], str]] = {
    "time": seconds, "bytes": sizes, "joules": format_joules,
}  # fmt: skip


def _device(row: DevicePlan) -> tuple[str, ...]:
    return (
        row.name,
        f"{sizes(row.peak_bytes)} of {format_bytes(row.memory_bytes)}",
        "yes" if row.fits else "NO",
        row.feasible,
        f"{row.cut}, {row.codec}" if row.cut else percent(row.pruned),
        f"{row.rank}, {counts(row.local_steps)}" if row.rank else "-",
        *(seconds(value) for value in (row.download_s, row.compute_s, row.upload_s, row.finish_s)),
        sizes(row.upload_bytes),
        joules(row.energy_j),
    )


def _group(group: Group) -> tuple[str, ...]:
    def told(name: str, form: Callable[[float], str]) -> str:
        return span(group.ranges[name], form)

    fits = "yes" if group.fits == group.devices else f"{group.fits} of {group.devices}"
    is_cut = group.ranges["cut"][1] > 0
    return (
        group.kind,
        str(group.devices),
        f"{told('peak_bytes', sizes)} of {told('memory_bytes', sizes)}",
        fits if group.fits else "NO",
        " to ".join(group.feasible),
        told("cut", lambda cut: f"{cut:.0f}") if is_cut else told("pruned", percent),
        f"{told('rank', counts)}, {told('local_steps', counts)}",
        *(told(f"{part}_s", seconds) for part in ("download", "compute", "upload", "finish")),
        told("upload_bytes", sizes),
        told("energy_j", joules),
    )


def _change(value: float, own: float) -> str:
    return f"{value / own - 1.0:+.0%}" if own > 0.0 else "-"
