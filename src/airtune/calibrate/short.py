"""One short federation, from which tables are read: the ordinary loop on a few devices."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from airtune.calibrate.coded import coded_scale, crossed_bytes
from airtune.calibrate.tried import Tried
from airtune.data import FederatedData
from airtune.engine.base import EngineSettings
from airtune.engine.checkpoint import load_checkpoint
from airtune.engine.virtual import local_engine
from airtune.fleet import load_fleet
from airtune.loop import LoopSettings, Run, run_to_end
from airtune.model.base import BaseModel
from airtune.plan import CodedScale, Method, Problem, WorkSpec
from airtune.records import RunWriter, read_run

_WELL_FITTED: dict[str, Any] = {
    "name": "calibration",
    "summary": "devices on which everything fits",
    "links": {"line": {"kind": "dedicated", "capacity": {"up_mbps": 1000, "down_mbps": 1000}}},
    "devices": [{"name": "device", "link": "line", "gflops_per_s": 1000, "memory_gib": 1e6,
                 "power_w": 1}],
}  # fmt: skip


_UNKNOWN_FLOPS_PER_S = 1e12
"""Of a fleet whose speeds nobody has declared."""


@dataclass(frozen=True, slots=True)
class CalibrationSetting:
    """What a calibration is measured on, and how."""

    base: BaseModel
    data: FederatedData
    problem: Problem
    """Of the real fleet: workload, weights and speeds come from it."""
    work: WorkSpec
    engine: EngineSettings
    rounds: int
    devices: int
    folder: Path | None = None
    """Where the short runs stand, so that an interrupted one goes on and tables share what both ask
    for; None = nowhere."""
    on_round: Callable[[], None] = lambda: None
    """Told the end of each round of each short run."""

    @property
    def count(self) -> int:
        """Devices that take part: those asked for, or all that have data."""
        return len(some_devices(self).devices)

    def device_s(self, flops: float) -> float:
        """Return the seconds that so many FLOPs take at the fleet's median speed."""
        speeds = self.problem.devices.flops_per_s
        return flops / (float(np.median(speeds)) if speeds is not None else _UNKNOWN_FLOPS_PER_S)


def some_devices(setting: CalibrationSetting) -> FederatedData:
    """Return the data of a few devices, evenly chosen among those that have some."""
    return chosen_devices(setting.data, setting.devices)


def chosen_devices(data: FederatedData, devices: int) -> FederatedData:
    """Return the data of at most so many devices, evenly chosen among those that have some."""
    held = [device for device in data.devices if len(device.train)]
    chosen = np.unique(np.linspace(0, len(held) - 1, min(devices, len(held))).round())
    return replace(data, devices=tuple(held[int(index)] for index in chosen))


@dataclass(frozen=True, slots=True)
class ShortRun:
    """What a short federation ended with."""

    curve: tuple[float, ...]
    """Validation loss before the first round and after each."""
    flops: float
    """Of all devices together."""
    coded: CodedScale = field(default_factory=CodedScale)
    crossed_bytes: tuple[float, float] = (0.0, 0.0)
    """Of activations and gradients, a step of a device; 0 where nothing was cut."""


def short_run(setting: CalibrationSetting, tried: Tried) -> ShortRun:
    """Run a short federation, or what an interruption has left of it; one that is done is read.

    Raises:
        CheckpointError: if what was left is damaged.
        TrainingError: if it gives no usable update.
    """
    if setting.folder is None:
        with tempfile.TemporaryDirectory(prefix="airtune-calibration-") as place:
            return short_run(replace(setting, folder=Path(place)), tried)
    size = f"{setting.rounds}-rounds-{setting.devices}-devices"
    return _run(setting, tried, setting.folder / size / tried.label.replace(" ", "-"))


def _run(setting: CalibrationSetting, tried: Tried, folder: Path) -> ShortRun:
    data = some_devices(setting)
    fleet = load_fleet(_WELL_FITTED, devices=len(data.devices), seed=setting.problem.seed)
    samples = np.array([len(device.train) for device in data.devices])
    problem = replace(
        setting.problem,
        devices=fleet.profiles(samples),
        rounds=setting.rounds,
        measurements=None,
        deadline_s=None,
        device_bytes_per_month=None,
        joules_per_round=None,
        work=setting.work,
    )
    if tried.upload is not None:
        workload = replace(problem.workload, upload=tried.upload, coded_scale=CodedScale())
        problem = replace(problem, workload=workload)
    method = Method("calibration", tried, work=setting.work, may_cut=True)
    engine = local_engine(
        fleet, problem, setting.base, data, work=setting.work, settings=setting.engine
    )
    is_begun = (folder / "run.json").exists()
    saved = load_checkpoint(folder / "checkpoint", identity="calibration") if is_begun else None
    done = 0 if saved is None else saved.rounds
    for _ in range(done):
        setting.on_round()
    if is_begun:
        writer = RunWriter.resume(folder, done)
    else:
        writer = RunWriter.create(folder, {"name": "calibration"})
    settings = LoopSettings(scale=setting.engine.train.scale)
    run = Run(method, problem, engine, writer, "calibration", settings)
    run_to_end(run, setting.base, on_round=lambda record: setting.on_round())
    record = read_run(folder)
    losses = [float(row["validation"]["loss"]) for row in record.rounds]
    first = float(record.rounds[0]["initial"]["loss"])
    flops = float(np.nansum(record.devices["flops"]))
    return ShortRun(
        (first, *losses), flops, coded_scale(problem, record), crossed_bytes(problem, record)
    )
