"""What a report is about: one run, or several methods over several seeds.

A comparison folder holds `compare.json` (recipe, methods, seeds, baseline) and a run folder for
each method and seed under `runs/`. RunSeries folders given by hand make a comparison too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from airtune.errors import CheckpointError
from airtune.plan import Floats
from airtune.records import METRICS, Metric, RunRecord, main_metric, range_fault, read_run

_PLAIN_BASELINE = "fedavg-lora"


@dataclass(frozen=True, slots=True)
class RunSeries:
    """One run with the series that a report needs."""

    method: str
    seed: int
    record: RunRecord
    end_s: Floats
    """Cumulative at the end of every round, shape (rounds,), as the next two."""
    traffic_bytes: Floats
    energy_j: Floats
    evaluated: list[int]
    """Positions of the rounds with a validation."""
    initial: float
    """The metric before the first round; NaN where it was not measured."""
    quality: Floats
    """The metric at these rounds, shape (evaluated,)."""
    worst_tenth: Floats
    """The same metric over the worst tenth of the devices, shape (evaluated,)."""

    def at(self, spent: Floats, budget: float) -> float:
        """Return the metric when no more than a budget was spent; NaN where it is not known.

        Args:
            spent: a cumulative column, shape (rounds,).
            budget: in its unit.
        """
        if not self.quality.size or self.total(spent) == 0.0:
            return float(self.quality[-1]) if self.quality.size else math.nan
        done = int(np.searchsorted(spent[self.evaluated], budget * (1 + 1e-9), side="right"))
        return float(self.quality[done - 1]) if done else self.initial

    @property
    def is_finished(self) -> bool:
        """The run came to its end."""
        return self.record.results is not None

    def total(self, column: Floats) -> float:
        """Return what the whole run spent of a cumulative column."""
        return float(column[-1]) if column.size else 0.0


@dataclass(frozen=True, slots=True)
class Study:
    """The runs of a report, by method in the order in which they are shown."""

    name: str
    metric: Metric
    target: float | None
    """None = no target was set before the runs, and none is made up afterwards."""
    methods: tuple[str, ...]
    runs: tuple[RunSeries, ...]
    baseline: str | None
    """The method that others are compared with; None for a single method."""
    missing: tuple[str, ...] = ()
    """Runs that the comparison asks for and that are not there yet."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """What the study was made to show, as `compare.json` has it; {} = a plain comparison."""
    recipe: str = ""
    keys: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Method, or setting of a sweep -> what it set of the recipe's plain keys."""

    @property
    def label(self) -> str:
        """The metric in words, with the data it is measured on."""
        return f"validation {self.metric.label}"

    def of(self, method: str) -> list[RunSeries]:
        """Return a method's runs, by seed."""
        return sorted((r for r in self.runs if r.method == method), key=lambda run: run.seed)

    @property
    def seeds(self) -> list[int]:
        """Every seed that occurs."""
        return sorted({run.seed for run in self.runs})

    @property
    def focus(self) -> str:
        """The method that the headline is about: the first that is not the baseline."""
        return next((name for name in self.methods if name != self.baseline), self.methods[0])

    @property
    def first(self) -> RunSeries:
        """The run whose header describes model, fleet and data."""
        return self.of(self.focus)[0]


def load_study(folders: Sequence[Path]) -> Study:
    """Read run folders and comparison folders into one study.

    Raises:
        CheckpointError: if a folder is neither, holds no run, or its records are damaged.
    """
    plans: list[dict[str, Any]] = []
    records: list[RunRecord] = []
    for folder in folders:
        if (folder / "compare.json").exists():
            plans.append(_read_plan(folder / "compare.json"))
            found = sorted(path.parent for path in (folder / "runs").glob("*/run.json"))
            records.extend(read_run(path) for path in found)
        else:
            records.append(read_run(folder))
    if not records:
        names = ", ".join(map(str, folders)) or "no folder"
        raise CheckpointError(f"there is no run to report on in {names}; run the recipe first")
    return _assemble(plans[0] if plans else {}, records)


def with_metric(study: Study, name: str) -> Study | None:
    """Return the same runs seen by another metric, without a target; None where no run has it."""
    metric = METRICS[name]
    runs = tuple(_run(run.record, run.method, metric) for run in study.runs)
    if not all(run.quality.size for run in runs):
        return None
    return replace(study, metric=metric, target=None, runs=runs)


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}; restore it from a copy") from error
    if not isinstance(plan, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(plan).__name__}")
    return plan


def _assemble(plan: Mapping[str, Any], records: Sequence[RunRecord]) -> Study:
    metric, target = _metric(records)
    runs = tuple(_run(record, label, metric) for record, label in _labelled(records))
    asked = [str(name) for name in plan.get("methods", [])]
    present = list(dict.fromkeys(run.method for run in runs))
    methods = tuple(
        [name for name in asked if name in present]
        + [name for name in present if name not in asked]
    )
    done = {(run.method, run.seed) for run in runs}
    missing = [
        f"{name} with seed {seed}"
        for name in asked
        for seed in plan.get("seeds", [])
        if (name, seed) not in done
    ]
    baseline = _baseline(plan.get("baseline"), methods)
    recipe = plan.get("recipe") or ""
    return Study(
        metric=metric,
        target=target,
        methods=methods,
        runs=runs,
        baseline=baseline,
        missing=tuple(missing),
        name=str(plan.get("name") or records[0].header.get("name") or "run"),
        keys=_keys(plan),
        protocol=plan.get("protocol") or {},
        recipe=recipe if isinstance(recipe, str) else yaml.safe_dump(recipe, sort_keys=False),
    )


def _keys(plan: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what each entry of a sweep sets, where it is a plain value."""
    return {
        str(entry["label"]): {
            key: value
            for key, value in (entry.get("values") or {}).items()
            if not isinstance(value, Mapping)
        }
        for entry in plan.get("entries", [])
    }


def _baseline(asked: object, methods: Sequence[str]) -> str | None:
    if len(methods) < 2:
        return None
    if isinstance(asked, str) and asked in methods:
        return asked
    return _PLAIN_BASELINE if _PLAIN_BASELINE in methods else methods[0]


def _labelled(records: Iterable[RunRecord]) -> list[tuple[RunRecord, str]]:
    """Name each record after its method, and after its folder too where that is not enough."""
    labelled: list[tuple[RunRecord, str]] = []
    taken: set[tuple[str, int]] = set()
    for record in records:
        name, seed = str(record.header["method"]["name"]), int(record.header["seed"])
        label = name if (name, seed) not in taken else f"{name} ({record.folder.name})"
        taken.add((label, seed))
        labelled.append((record, label))
    return labelled


def _metric(records: Sequence[RunRecord]) -> tuple[Metric, float | None]:
    """Return what the runs are judged by, and the target that was set before them."""
    target = records[0].header.get("target") or {}
    seen = {
        key: 0.0 for record in records for row in record.rounds for key in row["validation"] or {}
    }
    value = target.get("value")
    return main_metric(seen, target.get("metric")), None if value is None else float(value)


def _run(record: RunRecord, label: str, metric: Metric) -> RunSeries:
    rounds = record.rounds
    for row in rounds:
        fault = range_fault(row["validation"])
        if fault:
            raise CheckpointError(f"{record.folder}, round {row['round']}: {fault}; restore it")
    judged = np.array([metric.of(row["validation"]) for row in rounds], float)
    evaluated = np.flatnonzero(~np.isnan(judged)).tolist()
    return RunSeries(
        method=label,
        seed=int(record.header["seed"]),
        record=record,
        end_s=column(rounds, "end_s"),
        traffic_bytes=np.nancumsum(
            column(rounds, "upload_bytes") + column(rounds, "download_bytes")
        ),
        energy_j=np.nancumsum(column(rounds, "energy_j")),
        evaluated=evaluated,
        initial=metric.of(rounds[0].get("initial") if rounds else None),
        quality=judged[evaluated],
        worst_tenth=np.array([metric.worst_of(rounds[k]["validation"]) for k in evaluated], float),
    )


def column(rounds: Sequence[Mapping[str, Any]], name: str) -> Floats:
    """Return a field of every round, shape (rounds,); NaN where it is null or not there."""
    values = [row.get(name) for row in rounds]
    return np.array([math.nan if value is None else value for value in values], float)
