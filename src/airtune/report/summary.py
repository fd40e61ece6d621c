"""The numbers of a comparison: one row a method, each against the baseline."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from airtune.plan import Floats
from airtune.report.stats import (
    Change,
    Reached,
    cost_to_target,
    difference,
    relative_change,
    smooth,
)
from airtune.report.study import RunSeries, Study

Cost = Literal["time", "bytes", "energy", "rounds"]


@dataclass(frozen=True, slots=True)
class Row:
    """What one method needed and reached; each field holds a value a seed."""

    method: str
    seeds: tuple[int, ...]
    time: tuple[Reached, ...]
    bytes: tuple[Reached, ...]
    energy: tuple[Reached, ...]
    rounds: tuple[Reached, ...]
    best: Floats
    """Best validation, shape (seeds,); NaN where nothing was evaluated."""
    final: Floats
    """Last validation, as the next one."""
    worst: Floats
    """The metric over the worst tenth of the devices, by that metric."""
    test: Floats
    """Of the model after the last round."""
    at_time: Floats
    """Last validation before the soonest run of the seed ended."""
    at_bytes: Floats
    """Last validation before more was sent than by the run of the seed that sent least in all."""

    def cost(self, kind: Cost) -> tuple[Reached, ...]:
        """Return what the method spent until the target, a value a seed."""
        costs = {"time": self.time, "bytes": self.bytes, "energy": self.energy}
        return costs.get(kind, self.rounds)


@dataclass(frozen=True, slots=True)
class Against:
    """A method against the baseline, over the seeds that both have."""

    time: Change
    bytes: Change
    energy: Change
    rounds: Change
    best: Change
    """Absolute, in units of the metric, as those that follow."""
    final: Change
    worst: Change
    test: Change
    at_time: Change
    at_bytes: Change


@dataclass(frozen=True, slots=True)
class Summary:
    """All rows of a study, and each method but the baseline against it."""

    rows: dict[str, Row]
    against: dict[str, Against]


def summarise(study: Study) -> Summary:
    """Return the numbers of a study."""
    rows = {method: _row(study.of(method), study) for method in study.methods}
    base = rows.get(study.baseline or "")
    against = {name: compare(row, base) for name, row in rows.items() if base and row is not base}
    return Summary(rows, against)


def compare(row: Row, base: Row) -> Against:
    """Return a method against another, paired by seed."""
    shared = sorted(set(row.seeds) & set(base.seeds))
    mine, other = ([r.seeds.index(seed) for seed in shared] for r in (row, base))

    def cost(kind: Cost) -> Change:
        ours, theirs = row.cost(kind), base.cost(kind)
        return relative_change([ours[i] for i in mine], [theirs[i] for i in other])

    return Against(
        time=cost("time"),
        bytes=cost("bytes"),
        energy=cost("energy"),
        rounds=cost("rounds"),
        best=difference(row.best[mine], base.best[other]),
        final=difference(row.final[mine], base.final[other]),
        worst=difference(row.worst[mine], base.worst[other]),
        test=difference(row.test[mine], base.test[other]),
        at_time=difference(row.at_time[mine], base.at_time[other]),
        at_bytes=difference(row.at_bytes[mine], base.at_bytes[other]),
    )


def _row(runs: Sequence[RunSeries], study: Study) -> Row:
    metric = study.metric

    def reached(spent: Callable[[RunSeries], Floats]) -> tuple[Reached, ...]:
        return tuple(_reached(run, study, spent(run)) for run in runs)

    def each(value: Callable[[RunSeries], float]) -> Floats:
        return np.array([value(run) for run in runs], float)

    def last(column: Floats) -> float:
        return float(column[-1]) if column.size else math.nan

    return Row(
        method=runs[0].method,
        seeds=tuple(run.seed for run in runs),
        time=reached(_time),
        bytes=reached(_traffic),
        energy=reached(lambda run: run.energy_j),
        rounds=reached(lambda run: np.arange(1.0, len(run.record.rounds) + 1.0)),
        best=each(lambda run: metric.best(run.quality.tolist())),
        final=each(lambda run: last(run.quality)),
        worst=each(lambda run: last(run.worst_tenth)),
        test=each(lambda run: metric.of((run.record.results or {}).get("test"))),
        at_time=each(lambda run: run.at(run.end_s, _shared(study, run.seed, _time))),
        at_bytes=each(lambda run: run.at(run.traffic_bytes, _shared(study, run.seed, _traffic))),
    )


def _time(run: RunSeries) -> Floats:
    return run.end_s


def _traffic(run: RunSeries) -> Floats:
    return run.traffic_bytes


def _shared(study: Study, seed: int, spent: Callable[[RunSeries], Floats]) -> float:
    """Return what every run of a seed has spent; one that spent nothing is a level, no limit."""
    totals = [run.total(spent(run)) for run in study.runs if run.seed == seed]
    return min((total for total in totals if total > 0.0), default=0.0)


def _reached(run: RunSeries, study: Study, spent: Floats) -> Reached:
    total = run.total(spent)
    if study.target is None or not run.evaluated:
        return Reached(total, hit=False)
    return cost_to_target(
        spent[run.evaluated],
        smooth(run.quality),
        study.target,
        higher=study.metric.higher,
        total=total,
    )
