"""What pruning costs this model on this data: a short measurement, stored and used again.

Short federations of the ordinary loop are run on a few of the devices, one for each mean pruning
rate, none among them. The devices' rates are spread evenly from 0 to twice the mean and change
hands every round, as a method that follows the channels would have it; the criterion is the
method's own. Data, batches and first adapters are the same in all of them, so their difference is
what pruning costs.

    rounds_ratio(rate) = rounds needed with it / rounds needed without, to the same loss
    quality_loss(rate) = relative loss increase after the same rounds

Both are read off the validation curves by interpolation, over the last quarter of the rounds, and
made to rise with the rate. The ratio grows with the rounds (a pruned model lags more, the lower the
loss already is), so a few devices over as many rounds as the run will need measure it better than
many devices over a few. Expected error: a guide from one seed, good to tell "costs nearly nothing"
from "costs twice the rounds". It stands off the clock, for every method; its cost in device-seconds
is reported beside it.

Source: the form K(budget) T(budget) that it serves is reconstructed from arXiv 2602.01024.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from airtune.cost import Ladder, ladder
from airtune.data import FederatedData
from airtune.engine.local import LocalEngine, LocalSettings
from airtune.errors import CheckpointError
from airtune.fleet import Fleet, load_fleet
from airtune.keys import generator
from airtune.loop import LoopSettings, Run, begin, run_rounds
from airtune.methods.memoryless import Memoryless
from airtune.model.base import BaseModel
from airtune.model.state import initial_state
from airtune.plan import (
    Calibration,
    Decider,
    Floats,
    Method,
    Need,
    Observation,
    Problem,
    RoundPlan,
    State,
    WorkSpec,
    whole_model,
)
from airtune.records import RunWriter, read_run, write_atomically

Found = TypeVar("Found")

SCHEMA = 1
_WORST_RATIO = 10.0
"""Of rounds; what a rate gets that makes next to no progress."""
_WELL_FITTED: dict[str, Any] = {
    "name": "calibration",
    "summary": "devices on which everything fits",
    "links": {"line": {"kind": "dedicated", "capacity": {"up_mbps": 1000, "down_mbps": 1000}}},
    "devices": [{"name": "device", "link": "line", "gflops_per_s": 1000, "memory_gib": 1e6,
                 "power_w": 1}],
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setting:
    """What a calibration is measured on, and how."""

    base: BaseModel
    data: FederatedData
    problem: Problem
    """Of the real fleet: workload, weights and speeds come from it."""
    work: WorkSpec
    engine: LocalSettings
    rounds: int
    devices: int
    budgets: tuple[float, ...]
    """Mean pruning rates beside 0, rising."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A calibration and what it took."""

    calibration: Calibration
    device_s: float
    """Seconds that the fleet's devices would have computed for it, all together."""
    wall_s: float
    curves: tuple[tuple[float, ...], ...]
    """Validation loss before the first round and after each, a row a rate."""
    fingerprint: str
    """Of the weights it was measured on."""

    def as_document(self) -> dict[str, Any]:
        """Return plain values, for a file or a run's header."""
        found = self.calibration
        return {
            "schema": SCHEMA,
            "budget": found.budget.tolist(),
            "rounds_ratio": found.rounds_ratio.tolist(),
            "quality_loss": found.quality_loss.tolist(),
            "source": found.source,
            "device_s": self.device_s,
            "curves": [list(curve) for curve in self.curves],
            "fingerprint": self.fingerprint,
            "measured": {"wall_s": self.wall_s},
        }


@dataclass(frozen=True, slots=True)
class SpreadPruning(Memoryless):
    """The decider of a short federation: rates from 0 to twice the mean, dealt anew each round."""

    mean: float
    needs: frozenset[Need] = frozenset()

    def plan(
        self, problem: Problem, state: State, observation: Observation
    ) -> tuple[RoundPlan, State]:
        """Give every device a level of the ladder near its rate."""
        levels = ladder(problem.shape, problem.workload)
        rates = spread_rates(self.mean, problem.devices.weight, problem.seed, observation.round)
        chosen = nearest_levels(levels, rates)
        everybody = np.arange(len(problem.devices))
        plan = replace(
            whole_model(
                everybody, rank=problem.workload.rank, local_steps=problem.workload.local_steps,
                share=np.ones(len(everybody)),
            ),
            prune_heads=levels.prune_heads[chosen], prune_ffn=levels.prune_ffn[chosen],
        )  # fmt: skip
        reasons = tuple(f"calibration: prune {levels.pruned[level]:.2f}" for level in chosen)
        return RoundPlan(observation.round, plan, reasons), state


def spread_rates(mean: float, weight: Floats, seed: int, round: int) -> Floats:
    """Return pruning rates from 0 to twice the mean, shape (devices,), dealt by round.

    Their weighted mean is `mean`, unless a rate would exceed 0.95.

    >>> spread_rates(0.2, np.full(3, 1 / 3), 0, 0).mean().round(6)
    np.float64(0.2)
    """
    even = np.linspace(0.0, 2.0, len(weight)) if len(weight) > 1 else np.ones(1)
    rates = generator(seed, "calibration", round).permutation(even)
    centre = float(rates @ weight)
    return np.asarray(np.clip(rates * (mean / centre if centre > 0 else 0.0), 0.0, 0.95))


def nearest_levels(levels: Ladder, rates: Floats) -> list[int]:
    """Return the level of the ladder nearest to each rate."""
    return [int(np.argmin(np.abs(levels.pruned - rate))) for rate in rates]


def calibrate(setting: Setting) -> Measured:
    """Measure what pruning costs.

    Raises:
        TrainingError: if the short runs give no usable update.
    """
    began = time.perf_counter()
    small = subset(setting)
    budgets = (0.0, *setting.budgets)
    runs = [short_run(setting, small, SpreadPruning(mean)) for mean in budgets]
    curves = tuple(curve for curve, _ in runs)
    speeds = setting.problem.devices.flops_per_s
    speed = float(np.median(speeds)) if speeds is not None else 1e12
    flops = sum(spent for _, spent in runs)
    source = (
        f"{len(budgets)} short runs of {setting.rounds} rounds on {len(small.devices)} devices, "
        f"{flops / speed:.0f} device-seconds at the median speed, off the clock"
    )
    return Measured(
        calibration=read_curves(budgets, curves, source),
        device_s=flops / speed,
        wall_s=time.perf_counter() - began,
        curves=curves,
        fingerprint=setting.base.fingerprint,
    )


def read_curves(
    budgets: tuple[float, ...], curves: tuple[tuple[float, ...], ...], source: str
) -> Calibration:
    """Turn loss curves into rounds ratios and quality losses.

    Args:
        budgets: mean pruning rates, rising from 0.
        curves: loss before the first round and after each, a row a rate.
        source: how they were measured.

    >>> found = read_curves((0.0, 0.3), ((4.0, 3.0, 2.0, 1.0), (4.0, 3.5, 3.0, 2.5)), "example")
    >>> found.rounds_ratio.tolist(), found.quality_loss.tolist()
    ([1.0, 2.0], [0.0, 1.5])
    """
    dense = curves[0]
    ratios = [1.0] + [_rounds_ratio(dense, curve) for curve in curves[1:]]
    losses = [max(curve[-1] / dense[-1] - 1.0, 0.0) for curve in curves]
    return Calibration(
        budget=np.array(budgets),
        rounds_ratio=np.maximum.accumulate(np.array(ratios)),
        quality_loss=np.maximum.accumulate(np.array(losses)),
        source=source,
    )


def store(path: Path, measured: Measured) -> None:
    """Write a measurement.

    Raises:
        StorageError: if the disk is full or the folder cannot be written.
    """
    write_atomically(path, json.dumps(measured.as_document(), indent=1))


def load(path: Path) -> Measured | None:
    """Read a stored measurement; None where there is none.

    Raises:
        CheckpointError: if the file is damaged.
    """
    return load_as(path, from_document)


def load_as(path: Path, read: Callable[[dict[str, Any]], Found]) -> Found | None:
    """Read a stored document with this reader; None where there is none.

    Raises:
        CheckpointError: if the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        return read(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"the stored calibration {path} is damaged: {error}; remove it, it is measured again"
        ) from error


def from_document(document: dict[str, Any]) -> Measured:
    """Read what `Measured.as_document` wrote.

    Raises:
        ValueError: if it is of another schema.
        KeyError: if a field is missing.
    """
    if document["schema"] != SCHEMA:
        raise ValueError(f"it has schema {document['schema']}, this version reads {SCHEMA}")
    columns = [np.array(document[name], np.float64)
               for name in ("budget", "rounds_ratio", "quality_loss")]  # fmt: skip
    return Measured(
        calibration=Calibration(columns[0], columns[1], columns[2], str(document["source"])),
        device_s=float(document["device_s"]),
        wall_s=float(document["measured"]["wall_s"]),
        curves=tuple(tuple(map(float, curve)) for curve in document["curves"]),
        fingerprint=str(document["fingerprint"]),
    )


def _rounds_ratio(dense: tuple[float, ...], curve: tuple[float, ...]) -> float:
    """Return the geometric mean of the ratio of rounds over the last quarter."""
    rounds = np.arange(len(curve), dtype=np.float64)
    ours = np.minimum.accumulate(np.array(curve))
    best = np.minimum.accumulate(np.array(dense))
    later = rounds >= max(1.0, 0.75 * rounds[-1])
    # Interpolate rounds as a function of loss; a plateau counts from where it was first reached.
    falling = np.flatnonzero(np.diff(best, prepend=np.inf) < 0)
    needed = np.interp(-ours[later], -best[falling], rounds[falling])
    ratios = np.clip(rounds[later] / np.maximum(needed, 1e-9), 1.0, _WORST_RATIO)
    return float(np.exp(np.mean(np.log(ratios))))


def subset(setting: Setting) -> FederatedData:
    """Return the data of a few devices, evenly chosen among those that have some."""
    held = [device for device in setting.data.devices if len(device.train)]
    chosen = np.unique(np.linspace(0, len(held) - 1, min(setting.devices, len(held))).round())
    return replace(setting.data, devices=tuple(held[int(place)] for place in chosen))


def short_run(
    setting: Setting, data: FederatedData, decider: Decider
) -> tuple[tuple[float, ...], float]:
    """Return the loss curve of a short federation and the FLOPs it took."""
    fleet: Fleet = load_fleet(_WELL_FITTED, devices=len(data.devices), seed=setting.problem.seed)
    samples = np.array([len(device.train) for device in data.devices])
    problem = replace(
        setting.problem, devices=fleet.profiles(samples), rounds=setting.rounds,
        calibration=None, deadline_s=None, work=setting.work,
    )  # fmt: skip
    method = Method("calibration", decider, work=setting.work)
    engine = LocalEngine(
        fleet, problem, setting.base, data, work=setting.work, settings=setting.engine
    )
    try:
        with tempfile.TemporaryDirectory(prefix="airtune-calibration-") as place:
            writer = RunWriter.create(Path(place) / "run", {"name": "calibration"})
            scale = setting.engine.train.scale
            run = Run(method, problem, engine, writer, "calibration", LoopSettings(scale=scale))
            start = begin(run, initial_state(setting.base, problem.workload, problem.seed))
            run_rounds(run, start)
            record = read_run(writer.folder)
    finally:
        engine.close()
    losses = [float(row["validation"]["loss"]) for row in record.rounds]
    first = float(record.rounds[0]["initial"]["loss"])
    return (first, *losses), float(np.nansum(record.devices["flops"]))
