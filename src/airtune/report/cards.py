"""The headline cards and the table of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from airtune.report.curves import colour_index
from airtune.report.figure import palette_place
from airtune.report.stats import Change
from airtune.report.study import Study
from airtune.report.summary import Cost, Row, Summary
from airtune.report.wording import (
    FORMS,
    count_hits,
    count_rounds,
    count_seeds,
    format_change,
    format_gap,
    format_interval,
    format_range,
    format_reached,
    format_total,
    hold,
    mean_of,
)
from airtune.units import format_bytes

Tone = Literal["better", "worse", "plain"]


@dataclass(frozen=True, slots=True)
class Card:
    """One number that matters, with what it is compared with."""

    title: str
    value: str
    against: str
    note: str
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of the table: a main line and smaller ones."""

    main: str
    small: tuple[str, ...] = ()
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True)
class MethodLine:
    """A method's line of the table."""

    method: str
    key: int
    """Palette index of its curve."""
    is_baseline: bool
    cells: list[Cell] = field(default_factory=list)


_QUALITY = {
    "best": "Best validation",
    "final": "Last validation",
    "worst": "Worst tenth, last",
    "test": "Test",
}
_AT_EQUAL_COST = {"at_time": "At equal time", "at_bytes": "At equal bytes"}


def titles(study: Study) -> tuple[str, ...]:
    """Return the heads of the table's columns."""
    end = "in all" if study.target is None else "to target"
    costs = [f"{what} {end}" for what in ("Time", "Bytes", "Energy")]
    return (*costs, *_qualities(study).values())


def _qualities(study: Study) -> dict[str, str]:
    """Return the qualities of the table: without a target, those at equal cost among them."""
    is_fair = study.target is None and study.baseline is not None
    return (_AT_EQUAL_COST if is_fair else {}) | _QUALITY


def cards(study: Study, summary: Summary) -> list[Card]:
    """Return the headline cards of the study's focus."""
    row = summary.rows[study.focus]
    shown = [
        _cost_card(study, summary, "time", "Time"),
        _cost_card(study, summary, "bytes", "Bytes"),
        _cost_card(study, summary, "energy", "Energy"),
    ]
    metric = study.metric
    for title, values, kind in (
        (f"Best {study.label}", row.best, "best"),
        (f"Worst tenth of devices, {metric.label}", row.worst, "worst"),
    ):
        value = mean_of(values)
        if math.isnan(value):
            continue
        against, note = "", _seeds_note(row)
        tone: Tone = "plain"
        if study.baseline is not None:
            change = getattr(summary.against[study.focus], kind)
            base = mean_of(getattr(summary.rows[study.baseline], kind))
            against = f"{study.baseline}: {metric.write(base)}"
            note = f"difference {format_gap(change, metric)}"
            tone = _tone(change, higher=metric.higher)
        shown.append(Card(title, metric.write(value), against, note, tone))
    return shown


def table(study: Study, summary: Summary) -> list[MethodLine]:
    """Return a line a method, in the order of the study."""
    keys = {
        name: palette_place(colour_index(study, index)) for index, name in enumerate(study.methods)
    }
    return [
        MethodLine(
            method=name,
            key=keys[name],
            is_baseline=name == study.baseline,
            cells=[
                *(_cost_cell(study, summary, row, kind) for kind in ("time", "bytes", "energy")),
                *(_quality_cell(study, summary, row, kind) for kind in _qualities(study)),
            ],
        )
        for name, row in summary.rows.items()
    ]


def _cost_card(study: Study, summary: Summary, kind: Cost, title: str) -> Card:
    row = summary.rows[study.focus]
    if study.target is None:
        total = format_total(row.cost(kind), FORMS[kind])
        return Card(f"{title} in all", total, "", "no target was set")
    spent = format_reached(row.cost(kind), FORMS[kind])
    if study.baseline is None:
        missed = count_hits(row.cost(kind))
        return Card(f"{title} to target", spent, "", missed or _rounds_note(row, kind))
    change = getattr(summary.against[study.focus], kind)
    base = format_reached(summary.rows[study.baseline].cost(kind), FORMS[kind])
    if change.bound == "unknown":
        return Card(
            f"{title} to target", spent, f"{study.baseline}: {base}", format_interval(change)
        )
    return Card(
        title=f"{title} to target",
        value=format_change(change),
        against=f"{spent} against {base} ({study.baseline})",
        note=format_interval(change),
        tone=_tone(change, higher=False),
    )


def _cost_cell(study: Study, summary: Summary, row: Row, kind: Cost) -> Cell:
    if study.target is None:
        return Cell(format_total(row.cost(kind), FORMS[kind]), ("in all",))
    small = []
    tone: Tone = "plain"
    if row.method in summary.against:
        change: Change = getattr(summary.against[row.method], kind)
        if change.bound != "unknown":
            spread = format_range(change)
            small.append(format_change(change) + (f" ({spread})" if spread else ""))
            tone = _tone(change, higher=False)
    small.append(count_hits(row.cost(kind)))
    if kind == "bytes":
        small.append(_rounds_note(row, kind))
    main = format_reached(row.cost(kind), FORMS[kind])
    return Cell(main, tuple(part for part in small if part), tone)


def _quality_cell(study: Study, summary: Summary, row: Row, kind: str) -> Cell:
    main = study.metric.write(mean_of(getattr(row, kind)))
    if row.method not in summary.against:
        return Cell(main)
    change: Change = getattr(summary.against[row.method], kind)
    if change.bound == "unknown":
        return Cell(main)
    return Cell(
        main, (format_gap(change, study.metric),), _tone(change, higher=study.metric.higher)
    )


def _rounds_note(row: Row, kind: Cost) -> str:
    """Split bytes into rounds times bytes a round; name the rounds for another cost."""
    rounds = mean_of_costs([cost.value for cost in row.rounds])
    if not rounds:
        return ""
    if kind != "bytes":
        return f"in {count_rounds(rounds)}, {count_seeds(len(row.seeds))}"
    spent = mean_of_costs([cost.value for cost in row.bytes])
    if not spent:
        return ""
    return f"{count_rounds(rounds)} × {hold(format_bytes(spent / rounds))}"


def mean_of_costs(values: Sequence[float]) -> float:
    """Return the mean, 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def _seeds_note(row: Row) -> str:
    return f"mean of {count_seeds(len(row.seeds))}" if len(row.seeds) > 1 else ""


def _tone(change: Change, *, higher: bool) -> Tone:
    if not change.is_resolved:
        return "plain"
    return "better" if change.is_more == higher else "worse"
