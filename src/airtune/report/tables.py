"""A study as files for other programs and for a paper: tidy CSV and a table in LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from airtune.plan import Floats
from airtune.records import write_atomically, write_csv
from airtune.report.stats import Reached
from airtune.report.study import Study
from airtune.report.summary import Summary

_QUALITIES = {
    "best": "best", "final": "final", "worst_tenth": "worst", "test": "test",
    "at_equal_time": "at_time", "at_equal_bytes": "at_bytes",
}  # fmt: skip
"""Column -> field of a row."""


def write_tables(study: Study, summary: Summary, folder: Path) -> None:
    """Write `comparison.csv`, `curves.csv` and `comparison.tex`.

    Raises:
        StorageError: if they cannot be written.
    """
    write_comparison_csv(study, summary, folder / "comparison.csv")
    keys = _swept(study)
    names = (
        "method",
        *keys,
        "seed",
        "round",
        "time_s",
        "bytes",
        "energy_j",
        "metric",
        "value",
        "worst_tenth",
    )
    write_csv(folder / "curves.csv", names, iter(list(_curves(study, keys))))
    write_atomically(folder / "comparison.tex", latex(study, summary))


def write_comparison_csv(study: Study, summary: Summary, path: Path) -> None:
    """Write a line a run: what was swept, cost to target or in all, and quality."""
    keys = _swept(study)
    names = (
        "method",
        *keys,
        "seed",
        "metric",
        "target",
        "reached",
        "time_to_target_s",
        "bytes_to_target",
        "energy_to_target_j",
        "rounds_to_target",
        *_QUALITIES,
        "time_s",
        "bytes",
        "energy_j",
        "rounds",
    )
    write_csv(path, names, iter(list(_lines(study, summary, keys))))


def latex(study: Study, summary: Summary) -> str:
    """Return a table for a paper (booktabs): mean and standard deviation over seeds."""
    end = "" if study.target is None else " to target"
    fair = ("at_equal_time", "at_equal_bytes") if study.target is None else ()
    kinds = (*fair, "best", "worst_tenth", "test")
    unit = " (\\%)" if study.metric.is_share else ""
    heads = [
        "Method",
        f"Time{end} (s)",
        f"MB{end}",
        *(f"{kind.replace('_', ' ').capitalize()} {study.metric.label}{unit}" for kind in kinds),
    ]
    rows = [
        [
            _escaped(name),
            _cost(row.time, study, 1.0),
            _cost(row.bytes, study, 1e6),
            *(_spread(getattr(row, _QUALITIES[kind]), study) for kind in kinds),
        ]
        for name, row in summary.rows.items()
    ]
    body = "\n".join(" & ".join(cells) + r" \\" for cells in rows)
    return (
        f"% {study.name}: mean and standard deviation over seeds; > marks a missed target\n"
        f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}\n\\toprule\n"
        f"{' & '.join(heads)} \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
    )


def _swept(study: Study) -> list[str]:
    return list(dict.fromkeys(key for values in study.keys.values() for key in values))


def _lines(study: Study, summary: Summary, keys: Sequence[str]) -> Iterator[list[Any]]:
    is_set = study.target is not None
    for row in summary.rows.values():
        runs = study.of(row.method)
        for index, seed in enumerate(row.seeds):
            costs = [row.cost(kind)[index] for kind in ("time", "bytes", "energy", "rounds")]
            quality = [getattr(row, name)[index] for name in _QUALITIES.values()]
            run = runs[index]
            yield [
                row.method,
                *_set(study, row.method, keys),
                seed,
                study.metric.name,
                study.target,
                int(costs[0].hit) if is_set else None,
                *(cost.value if is_set else None for cost in costs),
                *(None if math.isnan(value) else float(value) for value in quality),
                *(run.total(column) for column in (run.end_s, run.traffic_bytes, run.energy_j)),
                len(run.record.rounds),
            ]


def _curves(study: Study, keys: Sequence[str]) -> Iterator[list[Any]]:
    for run in study.runs:
        for index, value, worst in zip(run.evaluated, run.quality, run.worst_tenth, strict=True):
            yield [
                run.method,
                *_set(study, run.method, keys),
                run.seed,
                index + 1,
                float(run.end_s[index]),
                float(run.traffic_bytes[index]),
                float(run.energy_j[index]),
                study.metric.name,
                float(value),
                None if math.isnan(worst) else float(worst),
            ]


def _set(study: Study, method: str, keys: Sequence[str]) -> list[Any]:
    return [study.keys.get(method, {}).get(key) for key in keys]


def _cost(values: Sequence[Reached], study: Study, scale: float) -> str:
    is_missed = study.target is not None and not all(value.hit for value in values)
    spent = np.array([value.value for value in values]) / scale
    return f"{'$>$ ' if is_missed else ''}{_mean(spent, lambda value: f'{value:.4g}')}"


def _spread(values: Floats, study: Study) -> str:
    scale, digits = (100.0, 1) if study.metric.is_share else (1.0, 3)
    return _mean(values * scale, lambda value: f"{value:.{digits}f}")


def _mean(values: Floats, write: Callable[[float], str]) -> str:
    known = values[np.isfinite(values)]
    if not known.size:
        return "--"
    mean = write(float(known.mean()))
    return mean if known.size < 2 else f"{mean} $\\pm$ {write(float(known.std(ddof=1)))}"


def _escaped(text: str) -> str:
    return "".join(f"\\{mark}" if mark in "&%$#_{}" else mark for mark in text)
