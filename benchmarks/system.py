"""The system as a whole: simulation against Flower's, planning at scale, start of a program."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from airtune.cost import known_shapes
from airtune.engine.timing import time_round
from airtune.fleet import load_fleet
from airtune.methods import build_method
from airtune.plan import Observation, Problem, Workload
from benchmarks.figure import Figure, at_least, at_most

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 3
DEVICES = 10_000
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
         "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT),
         # threads that spin while they wait triple the processor time on a busy machine
         "OMP_WAIT_POLICY": "PASSIVE"}  # fmt: skip
IMPORT = (
    "import sys, time; start = time.perf_counter(); import airtune; "
    "print(time.perf_counter() - start); print('torch' in sys.modules)"
)


def run() -> Iterator[Figure]:
    """Yield the figures; a few minutes, most of them Flower's simulation."""
    yield from _imports()
    yield from _planning()
    yield from _simulation()


def _imports() -> Iterator[Figure]:
    """Start a program that imports the package."""
    lines = [_output([sys.executable, "-c", IMPORT]).split() for _ in range(5)]
    seconds = statistics.median(float(line[0]) for line in lines)
    torch = any(line[1] == "True" for line in lines)
    yield at_most("system.import_s", seconds, 0.3, "import airtune, median of 5 processes")
    yield at_most("system.import_brings_torch", float(torch), 0, "torch in sys.modules")


def _planning() -> Iterator[Figure]:
    """Observe, plan and time rounds of 10,000 devices, as the loop does, without training."""
    fleet = load_fleet("cell-10", devices=DEVICES, seed=0)
    shape = known_shapes()["qwen2.5-0.5b"]
    workload = Workload(
        8,
        256,
        10,
        8,
        tuple(linear.name for linear in shape.linears),
        dtype_bytes=2,
        checkpointing=True,
        loss_chunk=256,
    )
    problem = Problem(shape, fleet.profiles(np.full(DEVICES, 100)), workload, 10, 0)
    for name, settings in (("fedavg-lora", {}), ("jcpba", {"budget": 0.2})):
        method = build_method(name, settings)
        state = method.decider.init(problem)
        rates = []
        for round in range(6):
            began = time.perf_counter()
            links = fleet.links_at(round, 0, 0.0)
            seen = Observation(round, 0.0, links, links.available, fleet.flops_at(round))
            plan, state = method.decider.plan(problem, state, seen)
            share = plan.assignments.share
            time_round(
                problem,
                fleet,
                plan,
                lambda links, remaining, share=share: share,
                start_s=0.0,
                dropped=np.zeros(len(plan.assignments), np.bool_),
            )
            rates.append(1.0 / (time.perf_counter() - began))
        yield at_least(
            f"system.rounds_per_s.{name}",
            statistics.median(rates[1:]),
            1.0,
            f"{DEVICES} devices of cell-10, observed, planned and timed",
        )


def _simulation() -> Iterator[Figure]:
    """Run one federation by both simulators, whole processes in turn."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _federation("make", folder)
        seconds: dict[str, list[float]] = {"airtune": [], "flower": []}
        losses: dict[str, list[float]] = {}
        for _ in range(REPEATS):
            for name, times in seconds.items():
                shutil.rmtree(folder / "run", ignore_errors=True)
                began = time.perf_counter()
                losses[name] = json.loads(_federation(name, folder).splitlines()[-1])
                times.append(time.perf_counter() - began)
    ours, theirs = (statistics.median(seconds[name]) for name in ("airtune", "flower"))
    what = f"20 clients x 3 rounds, {ours:.1f} s against {theirs:.1f} s of Flower's simulation"
    yield at_least("system.simulation_speedup", theirs / ours, 3.0, what)
    apart = max(abs(a - b) for a, b in zip(losses["airtune"], losses["flower"], strict=True))
    yield at_most("system.simulation_loss_difference", apart, 1e-3, "training loss of each round")


def _federation(what: str, folder: Path) -> str:
    return _output([sys.executable, "-m", "benchmarks.simulation", what, str(folder)])


def _output(command: list[str]) -> str:
    """Return what a process prints; its complaints are shown if it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **QUIET}
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return done.stdout
