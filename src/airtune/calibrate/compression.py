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

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from airtune.calibrate.measured import Measured
from airtune.calibrate.short import Setting, short_runs, some_devices
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
from airtune.work.batches import join_examples
from airtune.work.distortion import measure_distortion

_MOST_CUTS = 4
_EXAMPLES = 64
"""On which distortion is measured, at most."""


def calibrate_codecs(
    setting: Setting, codecs: Sequence[CodecSpec], cuts: Sequence[int] = ()
) -> Measured:
    """Measure what the codecs of a menu cost.

    Args:
        setting: Model, data, local work and size of the short runs.
        codecs: The menu.
        cuts: Where to cut, rising; empty = up to four, spread over the model.

    Raises:
        ModelError: if a cut is outside the model.
        TrainingError: if the short runs give no usable update.
    """
    began = time.perf_counter()
    places = tuple(cuts) or spread_cuts(setting.problem.shape.blocks)
    small = some_devices(setting)
    menu = tuple(dict.fromkeys(codecs))
    runs = list(
        short_runs(setting, small, (SpreadCuts(codec, places) for codec in (CodecSpec(), *menu)))
    )
    curves = tuple(curve for curve, _ in runs)
    device_s = setting.device_s(sum(spent for _, spent in runs))
    workload = setting.problem.workload
    distortion = measure_distortion(
        setting.base, _some([device.train for device in small.devices]), cuts=places, codecs=menu,
        batch=workload.batch, tokens=workload.tokens, seed=setting.problem.seed,
    )  # fmt: skip
    source = (
        f"{len(runs)} short runs of {setting.rounds} rounds on {len(small.devices)} devices cut "
        f"after blocks {', '.join(map(str, places))}, {device_s:.0f} device-seconds at the "
        "median speed, off the clock"
    )
    found = SplitCalibration(
        menu, np.array(places, np.int64), distortion, quality_losses(curves), source
    )
    return Measured(
        found, device_s, wall_s=time.perf_counter() - began, curves=curves,
        fingerprint=setting.base.fingerprint,
    )  # fmt: skip


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


def _some(parts: Sequence[Examples]) -> Examples:
    """Return a few examples, evenly taken from the devices."""
    each = max(_EXAMPLES // max(len(parts), 1), 1)
    return join_examples([(part, np.arange(min(each, len(part)))) for part in parts])
