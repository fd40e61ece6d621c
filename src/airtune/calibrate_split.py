"""What compressing cut activations costs this model on this data: measured once, stored, used again.

Distortion is measured on the model's own activations, for each cut and codec. What it costs in
quality is measured by short federations of the ordinary loop through cuts, one a codec and one
without compression, on a few of the devices; their cuts are spread over those asked for, and data,
batches and first adapters are the same in all.

    quality_loss(codec) = mean loss over the later half of the rounds / the same without - 1

at least 0. Expected error: a guide from one seed; a codec within a tenth of a percent of none may
come out as free. It stands off the clock; its cost in device-seconds is reported.

Source: Split Fine-Tuning for Large Language Models in Wireless Networks (arXiv 2501.09237) bounds
accuracy by distortion; that the relation is measured is this project's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from airtune.calibrate import Setting, load_as, short_run, subset
from airtune.methods.memoryless import Memoryless
from airtune.model.images import Examples
from airtune.plan import (
    CodecSpec,
    Floats,
    Need,
    Observation,
    Problem,
    RoundPlan,
    SplitCalibration,
    State,
    whole_model,
)
from airtune.records import write_atomically
from airtune.work.batches import join_examples
from airtune.work.distortion import measure_distortion

SCHEMA = 1
_MOST_CUTS = 4
_EXAMPLES = 64
"""On which distortion is measured, at most."""


@dataclass(frozen=True, slots=True)
class SplitMeasured:
    """A calibration of codecs and what it took."""

    calibration: SplitCalibration
    device_s: float
    """Seconds that the fleet's devices would have computed for it, all together."""
    wall_s: float
    curves: tuple[tuple[float, ...], ...]
    """Validation loss before the first round and after each: without compression, then a row a codec."""
    fingerprint: str
    """Of the weights it was measured on."""

    def as_document(self) -> dict[str, Any]:
        """Return plain values, for a file or a run's header."""
        found = self.calibration
        return {
            "schema": SCHEMA,
            "codecs": [asdict(codec) for codec in found.codecs],
            "cuts": found.cuts.tolist(),
            "distortion": found.distortion.tolist(),
            "quality_loss": found.quality_loss.tolist(),
            "source": found.source,
            "device_s": self.device_s,
            "curves": [list(curve) for curve in self.curves],
            "fingerprint": self.fingerprint,
            "measured": {"wall_s": self.wall_s},
        }


@dataclass(frozen=True, slots=True)
class SpreadCuts(Memoryless):
    """The decider of a short federation: every device cuts elsewhere, with one codec for all."""

    codec: CodecSpec
    cuts: tuple[int, ...]
    needs: frozenset[Need] = frozenset()

    def plan(
        self, problem: Problem, state: State, observation: Observation
    ) -> tuple[RoundPlan, State]:
        """Deal the cuts to the devices in turn."""
        everybody = np.arange(len(problem.devices))
        cut = np.resize(np.array(self.cuts, np.int64), len(everybody))
        plan = replace(
            whole_model(
                everybody, rank=problem.workload.rank, local_steps=problem.workload.local_steps,
                share=np.ones(len(everybody)),
            ),
            cut=cut, codecs=(self.codec,),
        )  # fmt: skip
        reasons = tuple(f"calibration: cut {each}, {self.codec.label}" for each in cut)
        return RoundPlan(observation.round, plan, reasons), state


def calibrate_split(
    setting: Setting, codecs: Sequence[CodecSpec], cuts: Sequence[int] = ()
) -> SplitMeasured:
    """Measure what the codecs of a menu cost.

    Args:
        setting: Model, data, local work and size of the short runs; its budgets are not read.
        codecs: The menu.
        cuts: Where to cut, rising; empty = up to four, spread over the model.

    Raises:
        ModelError: if a cut is outside the model.
        TrainingError: if the short runs give no usable update.
    """
    began = time.perf_counter()
    places = tuple(cuts) or spread_cuts(setting.problem.shape.blocks)
    small = subset(setting)
    menu = tuple(dict.fromkeys(codecs))
    runs = [short_run(setting, small, SpreadCuts(codec, places)) for codec in (CodecSpec(), *menu)]
    curves = tuple(curve for curve, _ in runs)
    speeds = setting.problem.devices.flops_per_s
    speed = float(np.median(speeds)) if speeds is not None else 1e12
    flops = sum(spent for _, spent in runs)
    workload = setting.problem.workload
    distortion = measure_distortion(
        setting.base, _some([device.train for device in small.devices]), cuts=places, codecs=menu,
        batch=workload.batch, tokens=workload.tokens, seed=setting.problem.seed,
    )  # fmt: skip
    source = (
        f"{len(runs)} short runs of {setting.rounds} rounds on {len(small.devices)} devices cut "
        f"after blocks {', '.join(map(str, places))}, {flops / speed:.0f} device-seconds at the "
        "median speed, off the clock"
    )
    return SplitMeasured(
        calibration=SplitCalibration(
            menu, np.array(places, np.int64), distortion, quality_losses(curves), source
        ),
        device_s=flops / speed, wall_s=time.perf_counter() - began, curves=curves,
        fingerprint=setting.base.fingerprint,
    )  # fmt: skip


def spread_cuts(blocks: int) -> tuple[int, ...]:
    """Return up to four cuts spread over a model.

    >>> spread_cuts(12), spread_cuts(3)
    ((1, 4, 8, 11), (1, 2))
    """
    count = min(_MOST_CUTS, blocks - 1)
    return tuple(int(place) for place in np.linspace(1, blocks - 1, count).round())


def quality_losses(curves: Sequence[Sequence[float]]) -> Floats:
    """Return the relative loss increase of each curve against the first, at least 0.

    >>> quality_losses([(4.0, 2.0, 1.0), (4.0, 2.2, 1.1), (4.0, 1.9, 0.9)]).round(6).tolist()
    [0.1, 0.0]
    """
    table = np.array(curves, np.float64)
    later = table[:, 1 + (table.shape[1] - 1) // 2 :].mean(axis=1)
    return np.asarray(np.maximum(later[1:] / later[0] - 1.0, 0.0), np.float64)


def store(path: Path, measured: SplitMeasured) -> None:
    """Write a measurement.

    Raises:
        StorageError: if the disk is full or the folder cannot be written.
    """
    write_atomically(path, json.dumps(measured.as_document(), indent=1))


def load(path: Path) -> SplitMeasured | None:
    """Read a stored measurement; None where there is none.

    Raises:
        CheckpointError: if the file is damaged.
    """
    return load_as(path, from_document)


def from_document(document: dict[str, Any]) -> SplitMeasured:
    """Read what `SplitMeasured.as_document` wrote.

    Raises:
        ValueError: if it is of another schema or its tables do not fit one another.
        KeyError: if a field is missing.
        TypeError: if a codec has a field that is none.
    """
    if document["schema"] != SCHEMA:
        raise ValueError(f"it has schema {document['schema']}, this version reads {SCHEMA}")
    codecs = tuple(CodecSpec(**codec) for codec in document["codecs"])
    cuts = np.array(document["cuts"], np.int64)
    distortion = np.array(document["distortion"], np.float64)
    losses = np.array(document["quality_loss"], np.float64)
    if distortion.shape != (len(cuts), len(codecs)) or losses.shape != (len(codecs),):
        raise ValueError(
            f"its tables have shapes {distortion.shape} and {losses.shape} for {len(cuts)} cuts "
            f"and {len(codecs)} codecs"
        )
    return SplitMeasured(
        calibration=SplitCalibration(codecs, cuts, distortion, losses, str(document["source"])),
        device_s=float(document["device_s"]), wall_s=float(document["measured"]["wall_s"]),
        curves=tuple(tuple(map(float, curve)) for curve in document["curves"]),
        fingerprint=str(document["fingerprint"]),
    )  # fmt: skip


def _some(parts: Sequence[Examples]) -> Examples:
    """Return a few examples, evenly taken from the devices."""
    each = max(_EXAMPLES // max(len(parts), 1), 1)
    return join_examples([(part, np.arange(min(each, len(part)))) for part in parts])
