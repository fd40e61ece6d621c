"""The page of a plan: from its numbers to the words and the picture that the report room writes."""

from __future__ import annotations

from airtune.planner.front import ParetoFront
from airtune.planner.prices import Price, price_lines
from airtune.planner.result import Plan
from airtune.planner.rows import WordTable, device_rows, front_rows, seconds, sizes, within_rows
from airtune.planner.within import Within
from airtune.recipe import Recipe, dump_recipe
from airtune.report.cards import Card
from airtune.report.plan_page import Dots, PlanPage, Sheet
from airtune.report.wording import bytes_scale, format_joules, seconds_scale
from airtune.units import format_number


def page_of(
    recipe: Recipe,
    plan: Plan,
    *,
    within: Within | None,
    prices: tuple[Price, ...] | None,
    front: ParetoFront | None,
) -> PlanPage:
    """Return all that the page of a plan says.

    Args:
        recipe: what was planned.
        plan: its plan.
        within: what would make it end in time, if that was asked.
        prices: what more would save, if that was asked.
        front: the plans to choose among, if that was asked.
    """
    tables = [
        *([("How much does it take", within_rows(within))] if within else []),
        *([("Plans to choose among", front_rows(front))] if front else []),
        ("Devices", device_rows(plan)),
    ]
    return PlanPage(
        title=f"{plan.recipe}: plan of {plan.method}",
        subtitle=f"{plan.model}, {plan.parameters:,} parameters · {len(plan.devices)} devices · "
        f"{plan.rounds} rounds",
        headline=_headline(plan, within),
        cards=tuple(_cards(plan)),
        warnings=plan.warnings,
        sheets=tuple(_sheet(title, words) for title, words in tables),
        prices=tuple(price_lines(prices or (), plan.quantile)),
        assumptions=(plan.rounds_source, *plan.assumptions),
        recipe=dump_recipe(recipe),
        front=_dots(front) if front and front.points else None,
    )


def _headline(plan: Plan, within: Within | None) -> str:
    said = f"The run takes {seconds(plan.total_s)}; {plan.straggler}."
    return said if within is None else f"{said} Asked: {within.verdict}."


def _cards(plan: Plan) -> list[Card]:
    beside = (
        ""
        if plan.round_quantile_s is None or plan.quantile is None
        else f"{plan.quantile:.0%} of the rounds within {seconds(plan.round_quantile_s)}"
    )
    cards = [
        Card("Time", seconds(plan.total_s), f"a round {seconds(plan.round_s)}", beside),
        Card(
            "Bytes",
            sizes(plan.total_upload_bytes + plan.total_download_bytes),
            f"{sizes(plan.total_upload_bytes)} of them up",
            "",
        ),
        Card(
            "Energy",
            f"{format_number(plan.total_energy_j / 3.6e6)} kWh",
            format_joules(plan.total_energy_j),
            "of the devices",
        ),
    ]
    if plan.money is not None:
        unit = f" {plan.money.currency}".rstrip()
        cards.append(
            Card(
                "Cost",
                f"{format_number(plan.money.total)}{unit}",
                f"electricity {format_number(plan.money.electricity)}, data {format_number(plan.money.data)}",
                "",
            )
        )
    return cards


def _sheet(title: str, words: WordTable) -> Sheet:
    parts = [part for part in (words.title, words.note) if part]
    note = " ".join(f"{part[:1].upper()}{part[1:]}." for part in parts)
    return Sheet(title, words.heads, words.rows, note)


def _dots(front: ParetoFront) -> Dots:
    """Return the front's first two costs across and up, and a third as the size of its dots."""
    costs = [*front.points, front.own]
    time_scale, time_unit = seconds_scale(max(one.total_s for one in costs))
    byte_scale, byte_unit = bytes_scale(max(one.total_bytes for one in costs))
    form = {
        "time": (time_scale, f"time of the run ({time_unit})"),
        "bytes": (byte_scale, f"bytes up and down ({byte_unit})"),
        "joules": (1e3, "energy of the devices (kJ)"),
    }
    scales = [(axis, *form[axis]) for axis in front.axes]
    titles = [title for _, _, title in scales] + [""] * (3 - len(scales))
    points = [
        (
            one.label,
            [one.cost(axis) / scale for axis, scale, _ in scales] + [0.0] * (3 - len(scales)),
        )
        for one in front.points
    ]
    own = [front.own.cost(axis) / scale for axis, scale, _ in scales]
    return Dots(
        (titles[0], titles[1], titles[2]),
        tuple((words, values[0], values[1], values[2]) for words, values in points),
        (own[0], own[1]),
    )
