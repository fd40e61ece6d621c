"""JCPBA, reduced: the gaps of both descents on real channels, and one seed of a table.

The table is that of `recipes/jcpba-gsm8k.yaml` (a pretrained 260K-parameter Llama), or of the
shipped model and data where the evaluation data are not beside the checkout. Three seeds and all
baselines are in docs/results.md; this is the rerun that takes minutes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from airtune.compare import compare_methods
from airtune.cost import known_shapes
from airtune.fleet import load_fleet
from airtune.methods import build_method
from airtune.plan import Floats, Observation, Problem, Workload
from airtune.recipe import load_recipe
from airtune.report import Row
from benchmarks.figure import Figure, at_most

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "jcpba-gsm8k.yaml"
DEMO = ROOT / "recipes" / "demo.yaml"
DATA = ROOT.parent / "shared" / "data"
ROUNDS, FLEETS, BUDGET = 10, 5, 0.3
CONTROLS = ("best-bandwidth", "uniform-prune-bandwidth")
SOLVERS: dict[str, dict[str, object]] = {
    "exact": {"solver": "exact"},
    "bcd_pruning_first": {"solver": "bcd", "bcd_start": "pruning-first"},
    "bcd_bandwidth_first": {"solver": "bcd", "bcd_start": "bandwidth-first"},
}


def run() -> Iterator[Figure]:
    """Yield the figures; about five minutes, nearly all of them training."""
    yield from _gaps()
    yield from _table()


def _gaps() -> Iterator[Figure]:
    """Plan the same rounds with the exact solver and with both descents."""
    found = {name: _planned(settings) for name, settings in SOLVERS.items()}
    exact = found["exact"]
    where = f"{ROUNDS} rounds of {FLEETS} fleets of 20 devices, mean pruning {BUDGET:g}"
    for name in ("bcd_pruning_first", "bcd_bandwidth_first"):
        ahead = float(np.max(exact[:, 0] / found[name][:, 0] - 1.0))
        yield at_most(f"jcpba.exact_behind_{name}", ahead, 1e-3, f"rounded round time, {where}")
        gap = float(np.median(found[name][:, 1]))
        yield Figure(f"jcpba.gap_{name}", gap, "none", True, f"median over the optimum, {where}")
    yield at_most("jcpba.gap_exact", float(np.max(exact[:, 1])), 1e-8, f"certified, {where}")
    rounded = float(np.median(exact[:, 2]))
    yield Figure("jcpba.gap_exact_rounded", rounded, "none", True, f"median, certified, {where}")


def _planned(settings: dict[str, object]) -> Floats:
    """Return (round seconds, gap, gap after rounding) of every planned round."""
    shape = known_shapes()["qwen2.5-0.5b"]
    work = Workload(8, 256, 10, 8, tuple(linear.name for linear in shape.linears), dtype_bytes=2)
    decider = build_method("jcpba", {"budget": BUDGET, **settings}).decider
    rows = []
    for seed in range(FLEETS):
        fleet = load_fleet({"base": "cell-10"}, devices=20, seed=seed)
        problem = Problem(shape, fleet.profiles(np.full(20, 100)), work, ROUNDS, seed)
        for round_ in range(ROUNDS):
            links = fleet.links_at(round_, 0, 0.0)
            seen = Observation(round_, 0.0, links, links.available, fleet.flops_at(round_))
            plan, _ = decider.plan(problem, decider.init(problem), seen)
            if plan.solution is not None:
                ended = plan.solution
                rows.append((plan.predicted_s, ended.gap, ended.gap_rounded))
    return np.array(rows)


def _table() -> Iterator[Figure]:
    """Train one seed of the table and compare what the target took."""
    real = DATA.is_dir()
    recipe = load_recipe(str(RECIPE if real else DEMO), overrides=["threads=1"])
    where = "recipes/jcpba-gsm8k.yaml, seed 0" if real else "the shipped model and data, seed 0"
    with tempfile.TemporaryDirectory() as folder:
        done = compare_methods(
            recipe,
            methods=["jcpba", "fedavg-lora", *CONTROLS],
            seeds=[0],
            folder=Path(folder) / "table",
        )
    rows = done.summary.rows
    ours, plain = rows["jcpba"], rows["fedavg-lora"]
    yield _ratio("jcpba.time_to_target", ours, plain, 0.6, f"fedavg-lora, {where}")
    for name in CONTROLS:
        yield _ratio(f"jcpba.time_against_{name}", ours, rows[name], 1.0, f"{name}, {where}")
    sent = ours.bytes[0].value / plain.bytes[0].value
    yield Figure("jcpba.bytes_to_target", sent, "<= 0.54", sent <= 0.54, f"fedavg-lora, {where}")


def _ratio(name: str, ours: Row, other: Row, bound: float, against: str) -> Figure:
    """Return a ratio of times to the target; a miss of ours never holds."""
    value = ours.time[0].value / other.time[0].value
    holds = ours.time[0].hit and value <= bound
    return Figure(name, value, f"<= {bound:g}", holds, against + _miss(ours, other))


def _miss(ours: Row, other: Row) -> str:
    missed = [row.method for row in (ours, other) if not row.time[0].hit]
    return f"; missed by {', '.join(missed)}" if missed else ""
