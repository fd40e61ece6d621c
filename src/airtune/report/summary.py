"""The numbers of a comparison: one row a method, each against the baseline."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from airtune.plan import Floats
from airtune.records import write_csv
from airtune.report.stats import (
    Change,
    Reached,
    cost_to_target,
    difference,
    relative_change,
    smooth,
)
from airtune.report.study import Metric, Run, Study

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
    """Best smoothed validation quality, shape (seeds,); NaN where nothing was evaluated."""
    final: Floats
    worst: Floats
    """The smoothed metric of the worst tenth of the devices at the end."""
    test: Floats

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
    """Absolute, in units of the metric, as the next two."""
    worst: Change
    test: Change


@dataclass(frozen=True, slots=True)
class Summary:
    """All rows of a study, and each method but the baseline against it."""

    rows: dict[str, Row]
    against: dict[str, Against]


def summarise(study: Study) -> Summary:
    """Return the numbers of a study."""
    rows = {method: _row(study.of(method), study.metric) for method in study.methods}
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
        time=cost("time"), bytes=cost("bytes"), energy=cost("energy"), rounds=cost("rounds"),
        best=difference(row.best[mine], base.best[other]),
        worst=difference(row.worst[mine], base.worst[other]),
        test=difference(row.test[mine], base.test[other]),
    )  # fmt: skip


def write_comparison_csv(study: Study, summary: Summary, path: Path) -> None:
    """Write a line a method and seed: cost to target, whether it was met, and quality."""
    names = (
        "method", "seed", "metric", "target", "reached", "time_to_target_s", "bytes_to_target",
        "energy_to_target_j", "rounds_to_target", "best", "final", "worst_tenth", "test",
    )  # fmt: skip
    write_csv(path, names, iter(list(_lines(study, summary))))


def _lines(study: Study, summary: Summary) -> list[list[Any]]:
    metric = study.metric
    lines: list[list[Any]] = []
    for row in summary.rows.values():
        for place, seed in enumerate(row.seeds):
            costs = [row.cost(kind)[place] for kind in ("time", "bytes", "energy", "rounds")]
            quality = [column[place] for column in (row.best, row.final, row.worst, row.test)]
            lines.append([
                row.method, seed, metric.name, metric.target, int(costs[0].hit),
                *(cost.value for cost in costs),
                *(None if math.isnan(value) else float(value) for value in quality),
            ])  # fmt: skip
    return lines


def _row(runs: Sequence[Run], metric: Metric) -> Row:
    def reached(spent: Callable[[Run], Floats]) -> tuple[Reached, ...]:
        return tuple(_reached(run, metric, spent(run)) for run in runs)

    def each(value: Callable[[Run], float]) -> Floats:
        return np.array([value(run) for run in runs], float)

    pick = np.max if metric.higher else np.min
    return Row(
        method=runs[0].method,
        seeds=tuple(run.seed for run in runs),
        time=reached(lambda run: run.end_s),
        bytes=reached(lambda run: run.traffic_bytes),
        energy=reached(lambda run: run.energy_j),
        rounds=reached(lambda run: np.arange(1.0, len(run.record.rounds) + 1.0)),
        best=each(lambda run: float(pick(run.smoothed)) if run.quality.size else math.nan),
        final=each(lambda run: float(run.smoothed[-1]) if run.quality.size else math.nan),
        worst=each(
            lambda run: float(smooth(run.worst_tenth)[-1]) if run.quality.size else math.nan
        ),
        test=each(lambda run: _test_quality(run, metric)),
    )


def _reached(run: Run, metric: Metric, spent: Floats) -> Reached:
    total = run.total(spent)
    if metric.target is None or not run.evaluated:
        return Reached(total, hit=False)
    return cost_to_target(
        spent[run.evaluated], run.smoothed, metric.target, higher=metric.higher, total=total
    )


def _test_quality(run: Run, metric: Metric) -> float:
    test = (run.record.results or {}).get("test") or {}
    value = test.get(metric.name)
    return math.nan if value is None else float(value)
