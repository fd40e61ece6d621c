"""The three protocols by which EdgeFlowerTune compares methods, each as a table.

    quality-under-budget   the quality reached before a budget of time, bytes or energy is spent
    cost-to-target         time, bytes, energy and rounds until a quality is reached
    robustness             the same runs under faults, against those without

Source: EdgeFlowerTune (arXiv 2605.08636) for the protocols and their names. Its formulas are not
taken over: budgets, faults and what is compared are reconstructed, as written in docs/planning.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from airtune.plan import Floats
from airtune.report.cards import Cell, MethodLine, Tone
from airtune.report.curves import colour_index
from airtune.report.figure import palette_place
from airtune.report.stats import Change, difference, relative_change
from airtune.report.study import RunSeries, Study
from airtune.report.summary import Cost, Row, Summary
from airtune.report.wording import (
    FORMS,
    count_hits,
    format_change,
    format_gap,
    format_reached,
    mean_of,
)

ProtocolName = Literal["quality-under-budget", "cost-to-target", "robustness"]
Spent = Literal["time", "bytes", "energy"]
SPENT: tuple[Spent, ...] = ("time", "bytes", "energy")
CLEAN = "none"
"""The fault of a run without any."""


@dataclass(frozen=True, slots=True)
class ProtocolTable:
    """One protocol's table."""

    name: str
    titles: tuple[str, ...]
    """Heads of the columns beside the method."""
    lines: tuple[MethodLine, ...]
    note: str
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Method -> column -> mean over seeds; NaN where it is not known."""


def protocol_table(study: Study, summary: Summary) -> ProtocolTable | None:
    """Return the table of the protocol that a study was made for; None where it names none."""
    name = study.protocol.get("name")
    if name == "quality-under-budget":
        return _under_budget(study)
    if name == "cost-to-target":
        return _to_target(study, summary)
    return _robustness(study, summary) if name == "robustness" else None


def _under_budget(study: Study) -> ProtocolTable:
    asked = study.protocol.get("budget") or {}
    kinds = tuple(kind for kind in SPENT if kind in asked or not asked)
    budgets = {kind: float(asked[kind]) for kind in kinds if kind in asked}
    columns: dict[str, Callable[[RunSeries], float]] = {
        _budget_title(kind, budgets): _at(study, kind, budgets) for kind in kinds
    }
    if len(kinds) > 1:
        columns["within all"] = lambda run: _at_all(study, run, kinds, budgets)
    values = {
        method: {
            title: np.array([at(run) for run in study.of(method)]) for title, at in columns.items()
        }
        for method in study.methods
    }
    given = "as stated" if asked else "those of the most economical run of each seed"
    return ProtocolTable(
        "quality-under-budget",
        tuple(columns),
        tuple(_quality_line(study, method, values) for method in study.methods),
        f"{study.label.capitalize()} at the last evaluation before the budget is spent, mean over "
        f"seeds; budgets are {given}.",
        {
            method: {title: mean_of(found) for title, found in row.items()}
            for method, row in values.items()
        },
    )


def _budget_title(kind: Spent, budgets: Mapping[Spent, float]) -> str:
    return f"within {FORMS[kind](budgets[kind])}" if kind in budgets else f"at equal {kind}"


def _at(study: Study, kind: Spent, budgets: Mapping[Spent, float]) -> Callable[[RunSeries], float]:
    return lambda run: run.at(spent(run, kind), _limit(study, run, kind, budgets))


def _at_all(
    study: Study, run: RunSeries, kinds: Sequence[Spent], budgets: Mapping[Spent, float]
) -> float:
    """Return the quality before the first of the budgets is spent."""
    reached = [
        int(
            np.searchsorted(
                spent(run, kind)[run.evaluated],
                _limit(study, run, kind, budgets) * (1 + 1e-9),
                side="right",
            )
        )
        for kind in kinds
        if run.total(spent(run, kind))
    ]
    done = min(reached, default=len(run.quality))
    return float(run.quality[done - 1]) if done else run.initial


def _limit(study: Study, run: RunSeries, kind: Spent, budgets: Mapping[Spent, float]) -> float:
    if kind in budgets:
        return budgets[kind]
    totals = [one.total(spent(one, kind)) for one in study.runs if one.seed == run.seed]
    return min((total for total in totals if total > 0.0), default=0.0)


def spent(run: RunSeries, kind: Spent) -> Floats:
    """Return what a run has spent of one thing at the end of each round, shape (rounds,)."""
    return {"time": run.end_s, "bytes": run.traffic_bytes, "energy": run.energy_j}[kind]


def _quality_line(
    study: Study, method: str, values: Mapping[str, Mapping[str, Floats]]
) -> MethodLine:
    base = values.get(study.baseline or "") if method != study.baseline else None
    cells = []
    for title, found in values[method].items():
        change = (
            None
            if base is None or len(base[title]) != len(found)
            else (difference(found, base[title]))
        )
        cells.append(_quality_cell(study, mean_of(found), change))
    return _line(study, method, cells)


def _to_target(study: Study, summary: Summary) -> ProtocolTable:
    kinds: tuple[Cost, ...] = ("time", "bytes", "energy", "rounds")
    lines, values = [], {}
    for method, row in summary.rows.items():
        cells = [
            Cell(format_reached(row.cost(kind), FORMS[kind]), _against(summary, method, kind))
            for kind in kinds
        ]
        cells.append(Cell(count_hits(row.time) or "hit"))
        lines.append(_line(study, method, cells))
        values[method] = {
            kind: float(np.mean([cost.value for cost in row.cost(kind)])) for kind in kinds
        } | {"hits": float(sum(cost.hit for cost in row.time))}
    target = "" if study.target is None else study.metric.write(study.target)
    return ProtocolTable(
        "cost-to-target",
        (*kinds, "hit"),
        tuple(lines),
        f"Cost until the mean of three evaluations of {study.label} reaches {target}, which was fixed "
        "before the runs. “> T”: a seed missed the target in a run of length T.",
        values,
    )


def _against(summary: Summary, method: str, kind: Cost) -> tuple[str, ...]:
    if method not in summary.against:
        return ()
    change: Change = getattr(summary.against[method], kind)
    return () if change.bound == "unknown" else (format_change(change),)


def _robustness(study: Study, summary: Summary) -> ProtocolTable:
    faults: Mapping[str, Sequence[str]] = study.protocol.get("faults") or {}
    kinds = tuple(dict.fromkeys(str(fault) for _, fault in faults.values()))
    by = {(str(method), str(fault)): label for label, (method, fault) in faults.items()}
    methods = dict.fromkeys(method for method, _ in by)
    lines, values = [], {}
    for index, method in enumerate(methods):
        rows = {fault: summary.rows.get(by.get((method, fault), "")) for fault in kinds}
        clean = rows.get(CLEAN)
        cells = [_fault_cell(study, row, None if row is clean else clean) for row in rows.values()]
        lines.append(MethodLine(method, palette_place(index), is_baseline=False, cells=cells))
        values[method] = {
            fault: math.nan if row is None else mean_of(row.final) for fault, row in rows.items()
        }
    costs = "to the target" if study.target is not None else "of the run"
    return ProtocolTable(
        "robustness",
        tuple(f"fault: {fault}" for fault in kinds),
        tuple(lines),
        f"Last {study.label}, mean over seeds. Second line: difference to the same seed without a "
        f"fault, and the change of time and bytes {costs}.",
        values,
    )


def _fault_cell(study: Study, row: Row | None, clean: Row | None) -> Cell:
    if row is None:
        return Cell("–")
    main = study.metric.write(mean_of(row.final))
    if clean is None:
        return Cell(main)
    shared = sorted(set(row.seeds) & set(clean.seeds))
    mine, other = ([one.seeds.index(seed) for seed in shared] for one in (row, clean))
    gap = difference(row.final[mine], clean.final[other])
    costs = {
        kind: relative_change(
            [row.cost(kind)[index] for index in mine], [clean.cost(kind)[index] for index in other]
        )
        if study.target is not None
        else _in_all(row, clean, kind, mine, other)
        for kind in ("time", "bytes")
    }
    small = [format_gap(gap, study.metric)]
    small += [
        f"{kind} {format_change(change)}"
        for kind, change in costs.items()
        if change.bound != "unknown"
    ]
    return Cell(main, tuple(small), _tone(gap, higher=study.metric.higher))


def _in_all(row: Row, clean: Row, kind: Cost, mine: Sequence[int], other: Sequence[int]) -> Change:
    """Return the change of what whole runs spent, where no target was set."""
    ours = np.array([row.cost(kind)[index].value for index in mine])
    theirs = np.array([clean.cost(kind)[index].value for index in other])
    if not (ours.size and np.all(ours > 0.0) and np.all(theirs > 0.0)):
        return Change(math.nan, math.nan, math.nan, ours.size, "unknown")
    logs = np.log(ours / theirs)
    return Change(float(np.expm1(logs.mean())), math.nan, math.nan, logs.size)


def _quality_cell(study: Study, value: float, change: Change | None) -> Cell:
    main = study.metric.write(value)
    if change is None or change.bound == "unknown":
        return Cell(main)
    return Cell(
        main, (format_gap(change, study.metric),), _tone(change, higher=study.metric.higher)
    )


def _tone(change: Change, *, higher: bool) -> Tone:
    if not change.is_resolved:
        return "plain"
    return "better" if change.is_more == higher else "worse"


def _line(study: Study, method: str, cells: list[Cell]) -> MethodLine:
    key = palette_place(colour_index(study, study.methods.index(method)))
    return MethodLine(method, key, is_baseline=method == study.baseline, cells=cells)
