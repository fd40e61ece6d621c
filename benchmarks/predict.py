"""Predicted against measured: step time and peak memory of models and lengths not probed.

A device's profile is fitted to two probe models. Every case trains in a fresh process, its steps in
turn with the probes'. Errors are signed: predicted / measured - 1.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from airtune.cost import TimedModel, achieved_flops_per_s, fit_speed, peak_memory, train_flops
from airtune.plan import Assignments, whole_model
from benchmarks.figure import Figure, at_most
from benchmarks.training import CASES, PROBES, Case, Seen

TIME_GOAL, MEMORY_GOAL = 0.10, 0.15


def run() -> Iterator[Figure]:
    """Measure every case and yield its errors, then their median and 95th percentile."""
    time_errors, memory_errors = [], []
    for name, case in CASES.items():
        seen = train(name)
        speed = predicted_speed(case, seen)
        time_errors.append(step_flops(case) / speed / seen.step_s - 1.0)
        memory_errors.append(peak_bytes(case) / seen.peak_bytes - 1.0)
        measured = f"{seen.step_s:.3f} s; predicted {speed / 1e9:.1f} GFLOP/s"
        yield _error(f"predict.step_time[{name}]", time_errors[-1], measured)
        measured = f"{seen.peak_bytes / 1e6:.0f} MB"
        yield _error(f"predict.peak_memory[{name}]", memory_errors[-1], measured)
    yield from _summary("predict.step_time", time_errors, TIME_GOAL, "a step measured")
    yield from _summary("predict.peak_memory", memory_errors, MEMORY_GOAL, "a peak above the floor")


def predicted_speed(case: Case, seen: Seen) -> float:
    """Return the FLOP/s that the probes let expect of a case."""
    probes = [
        TimedModel(probe.shape, probe.workload, step_s)
        for probe, step_s in zip(PROBES, seen.probes_s, strict=True)
    ]
    return achieved_flops_per_s(fit_speed(probes), case.shape, case.workload)


def step_flops(case: Case) -> float:
    """Return the FLOPs of one local step."""
    return float(train_flops(case.shape, case.workload, _plan(case))[0])


def peak_bytes(case: Case) -> float:
    """Return the predicted peak memory of training."""
    return float(peak_memory(case.shape, case.workload, _plan(case)).total[0])


def train(name: str) -> Seen:
    """Train a case in a fresh process and return what it measured."""
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.training", name],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return Seen(**json.loads(process.stdout.splitlines()[-1]))


def _plan(case: Case) -> Assignments:
    one = np.ones(1)
    return whole_model(np.arange(1), rank=case.workload.rank, local_steps=1, share=one)


def _error(name: str, error: float, measured: str) -> Figure:
    return Figure(name, float(error), "none", True, f"signed error, measured {measured}")


def _summary(name: str, errors: list[float], goal: float, basis: str) -> Iterator[Figure]:
    """Yield the median error, and the one whose size is the 95th percentile, with its sign."""
    by_size = sorted(errors, key=abs)
    worst = by_size[int(np.ceil(0.95 * len(errors))) - 1]
    text = f"{basis}; signed error over {len(errors)} models not probed"
    for kind, value in (("p50", float(np.median(errors))), ("p95", worst)):
        bound = at_most(f"{name}.{kind}", abs(value), goal, text)
        yield Figure(bound.name, value, f"within ±{goal:g}", bound.holds, text)
