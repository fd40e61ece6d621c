"""What the knobs cost this model on these data, each table read off short federations.

Short federations of the ordinary loop are run on a few of the devices, one for each setting of a
knob. Data, batches and first adapters are the same in all of them, so their difference is what the
knob costs (`curves`):

    pruning   for each mean rate, spread over the devices and dealt anew each round, as a method
              that follows the channels would have it; against the whole model
    ranks     a half, a quarter and an eighth of the full rank; against the full rank
    cut       cuts spread over the model, without compression; against the whole model
    codecs    each codec through the same cuts; against the cuts without compression
    steps     a half, twice and four times the local steps; against the recipe's
    uploads   each codec of updates; against updates that are sent as they are

Pruning and ranks are made to rise with what they take away. Pruning rates are tried from small to
large, and no more after one whose loss runs away; the largest rate of a device in the runs before is
the most that is then pruned. A codec is tried at all cuts at once: at one cut it costs in proportion
to its distortion there, measured on the model's own activations.

It stands off the clock, for every method; its cost in device-seconds is reported beside it.

Source: the form K(budget) T(budget) is reconstructed from arXiv 2602.01024; Split Fine-Tuning for
Large Language Models in Wireless Networks (arXiv 2501.09237) bounds accuracy by distortion. That
both are measured, and in one unit, is this project's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np

from airtune.calibrate.coded import mean_scale
from airtune.calibrate.curves import (
    Curve,
    end_loss,
    later_loss,
    later_round,
    log_rounds,
    rounds_needed,
    runs_away,
)
from airtune.calibrate.short import CalibrationSetting, ShortRun, short_run, some_devices
from airtune.calibrate.tried import Tried
from airtune.data import FederatedData
from airtune.model.images import Examples
from airtune.plan import (
    CodecRounds,
    CodecSpec,
    Floats,
    Ints,
    Measurements,
    PrunedRounds,
    RankRounds,
    StepRounds,
    UploadRounds,
)
from airtune.units import BITS_PER_BYTE
from airtune.work.batches import join_examples, lengths_of
from airtune.work.crossing import measure_crossing

_MOST_CUTS = 4
_EXAMPLES = 64
"""On which distortion is measured, at most."""


def measure_pruning(setting: CalibrationSetting, rates: Sequence[float]) -> Measurements:
    """Measure what pruning costs.

    Args:
        setting: Model, data, local work and size of the short runs.
        rates: Mean pruning rates beside 0, rising.

    Raises:
        TrainingError: if the short runs give no usable update.
    """
    runs, most = [short_run(setting, Tried())], 0.0
    for rate in rates:
        runs.append(short_run(setting, Tried(pruned=rate)))
        if runs_away(runs[0].curve, runs[-1].curve):
            break
        most = min(2.0 * rate, 1.0)
    rows = read_pruning((0.0, *rates), [run.curve for run in runs])
    return Measurements(
        setting.base.fingerprint,
        _source("pruning", setting, runs),
        runs[0].curve,
        pruning=rows,
        most_pruned=most,
        coded_scale=mean_scale([run.coded for run in runs]),
    )


def read_pruning(rates: Sequence[float], curves: Sequence[Curve]) -> tuple[PrunedRounds, ...]:
    """Turn loss curves, the first without pruning, into costs that rise with the rate.

    >>> read_pruning((0.0, 0.3), ((4.0, 3.0, 2.0, 1.0), (4.0, 3.5, 3.0, 2.5)))[1]
    PrunedRounds(pruned=0.3, log_rounds=0.6931471805599453, loss=1.5)
    """
    needed = accumulate((rounds_needed(curves[0], curve) for curve in curves), max)
    losses = accumulate((end_loss(curves[0], curve) for curve in curves), max)
    return tuple(
        PrunedRounds(rate, float(np.log(ratio)), loss)
        for rate, ratio, loss in zip(rates, needed, losses, strict=False)
    )


def measure_ranks(setting: CalibrationSetting) -> Measurements:
    """Measure what a half, a quarter and an eighth of the full rank cost.

    Raises:
        TrainingError: if the short runs give no usable update.
    """
    full = setting.problem.workload.rank
    smaller = [rank for rank in (full // 2, full // 4, full // 8) if rank >= 1]
    reference = short_run(setting, Tried())
    runs = [short_run(setting, Tried(rank=rank)) for rank in smaller]
    needed = accumulate((rounds_needed(reference.curve, run.curve) for run in runs), max)
    losses = accumulate((end_loss(reference.curve, run.curve) for run in runs), max)
    rows = [
        RankRounds(rank, float(np.log(ratio)), loss)
        for rank, ratio, loss in zip(smaller, needed, losses, strict=True)
    ]
    return Measurements(
        setting.base.fingerprint,
        _source("ranks", setting, [reference, *runs]),
        reference.curve,
        ranks=(*reversed(rows), RankRounds(full, 0.0)),
    )


def measure_uploads(setting: CalibrationSetting, codecs: Sequence[CodecSpec]) -> Measurements:
    """Measure what coding the updates costs, of the recipe's codec and of a menu.

    Raises:
        TrainingError: if the short runs give no usable update.
    """
    usual = setting.problem.workload.upload
    menu = dict.fromkeys((CodecSpec(), usual, *codecs))
    runs = [short_run(setting, Tried(upload=None if spec == usual else spec)) for spec in menu]
    reference = runs[0].curve
    rows = [
        UploadRounds(
            spec,
            float(np.log(rounds_needed(reference, run.curve))),
            end_loss(reference, run.curve),
            run.coded.up,
        )
        for spec, run in zip(menu, runs, strict=True)
    ]
    return Measurements(
        setting.base.fingerprint, _source("uploads", setting, runs), reference, uploads=tuple(rows)
    )


def measure_steps(setting: CalibrationSetting) -> Measurements:
    """Measure what a half, twice and four times the local steps cost in rounds.

    Raises:
        TrainingError: if the short runs give no usable update.
    """
    usual = setting.problem.workload.local_steps
    reference = short_run(setting, Tried())
    others = sorted({max(usual // 2, 1), 2 * usual, 4 * usual} - {usual})
    runs = {count: short_run(setting, Tried(local_steps=count)) for count in others}
    rows = [
        StepRounds(
            count, log_rounds(reference.curve, run.curve), end_loss(reference.curve, run.curve)
        )
        for count, run in runs.items()
    ]
    return Measurements(
        setting.base.fingerprint,
        _source("steps", setting, [reference, *runs.values()]),
        reference.curve,
        steps=tuple(sorted((*rows, StepRounds(usual, 0.0)))),
    )


def measure_cut(setting: CalibrationSetting, cuts: Sequence[int] = ()) -> Measurements:
    """Measure what being cut costs, without compression; often less than nothing.

    Args:
        setting: As for `measure_pruning`.
        cuts: Where to cut, rising; empty = up to four, spread over the model.

    Raises:
        ModelError: if a cut is outside the model.
        TrainingError: if the short runs give no usable update.
    """
    runs = [short_run(setting, tried) for tried in (Tried(), _cut(setting, cuts, CodecSpec()))]
    reference, found = (run.curve for run in runs)
    return Measurements(
        setting.base.fingerprint,
        _source("being cut", setting, runs),
        reference,
        cut=log_rounds(reference, found),
    )


def measure_codecs(
    setting: CalibrationSetting, codecs: Sequence[CodecSpec], cuts: Sequence[int] = ()
) -> Measurements:
    """Measure what the codecs of a menu cost through cuts.

    Args:
        setting: As for `measure_pruning`.
        codecs: The menu.
        cuts: As for `measure_cut`.

    Raises:
        ModelError: if a cut is outside the model.
        TrainingError: if the short runs give no usable update.
    """
    menu = tuple(dict.fromkeys(codecs))
    reference = short_run(setting, _cut(setting, cuts, CodecSpec()))
    runs = [short_run(setting, _cut(setting, cuts, codec)) for codec in menu]
    places = _places(setting, cuts)
    crossing = measure_crossing(
        setting.base,
        _some([device.train for device in some_devices(setting).devices]),
        cuts=places,
        codecs=menu,
        workload=setting.problem.workload,
        work=setting.work,
        seed=setting.problem.seed,
    )
    distortion, *bits = crossing
    if not setting.work.device_frozen and setting.work.labels == "travel":
        bits = _as_trained(setting, places, bits, runs)
    costs = {
        codec: (
            float(np.log(rounds_needed(reference.curve, run.curve))),
            later_loss(reference.curve, run.curve),
        )
        for codec, run in zip(menu, runs, strict=True)
    }
    what = f"codecs after blocks {', '.join(map(str, places))}"
    return Measurements(
        setting.base.fingerprint,
        _source(what, setting, [reference, *runs]),
        codecs=by_distortion(places, costs, distortion, *bits),
        codecs_at=later_round(reference.curve),
        filled=_filled(setting.data, setting.problem.workload.tokens),
        coded_scale=mean_scale([run.coded for run in (reference, *runs)]),
    )


def by_distortion(
    cuts: Sequence[int] | Ints,
    costs: Mapping[CodecSpec, tuple[float, float]],
    distortion: Floats,
    up_bits: Floats | None = None,
    down_bits: Floats | None = None,
) -> tuple[CodecRounds, ...]:
    """Spread what codecs cost at all cuts at once over the cuts, in proportion to distortion.

    Args:
        cuts: Rising, c of them.
        costs: ln K and the increase of the loss, for each of k codecs.
        distortion: Shape (c, k).
        up_bits: An entry of the activations' payloads, shape (c, k); None = not measured.
        down_bits: Of the gradients'.

    >>> by_distortion([1, 3], {CodecSpec("fp16"): (0.2, 0.1)}, np.array([[0.1], [0.3]]))[1].log_rounds
    0.3
    """
    rows, nothing = [], np.zeros_like(distortion)
    up, down = (nothing if bits is None else bits for bits in (up_bits, down_bits))
    for index, (codec, (rounds, loss)) in enumerate(costs.items()):
        column = distortion[:, index]
        mean = float(np.mean(column))
        for number, (cut, here) in enumerate(zip(cuts, column, strict=True)):
            scale = float(here) / mean if mean > 0.0 else 1.0
            bits = float(up[number, index]), float(down[number, index])
            rows.append(CodecRounds(int(cut), codec, rounds * scale, loss * scale, *bits))
    return tuple(rows)


def spread_cuts(blocks: int) -> tuple[int, ...]:
    """Return up to four cuts spread over a model.

    >>> spread_cuts(12), spread_cuts(3)
    ((1, 4, 8, 11), (1, 2))
    """
    count = min(_MOST_CUTS, blocks - 1)
    return tuple(int(index) for index in np.linspace(1, blocks - 1, count).round())


def _places(setting: CalibrationSetting, cuts: Sequence[int]) -> tuple[int, ...]:
    return tuple(cuts) or spread_cuts(setting.problem.shape.blocks)


def _cut(setting: CalibrationSetting, cuts: Sequence[int], codec: CodecSpec) -> Tried:
    return Tried(cuts=_places(setting, cuts), codec=codec)


def _source(what: str, setting: CalibrationSetting, runs: Sequence[ShortRun]) -> str:
    device_s = setting.device_s(sum(run.flops for run in runs))
    return (
        f"{what} by {len(runs)} short runs of {setting.rounds} rounds on {setting.count} devices, "
        f"{device_s:.3g} device-seconds at the median speed, off the clock"
    )


def _as_trained(
    setting: CalibrationSetting,
    cuts: Sequence[int],
    bits: Sequence[Floats],
    runs: Sequence[ShortRun],
) -> list[Floats]:
    """Return bits (cuts, codecs), up and down, as they were while training: on the mean over devices."""
    data, workload = some_devices(setting), setting.problem.workload
    dealt = np.resize(np.arange(len(cuts)), len(data.devices))
    width = setting.problem.shape.width
    elements = _filled(data, workload.tokens) * workload.batch * workload.tokens * width
    found = []
    for way, table in enumerate(bits):
        expected = elements * table[dealt].mean(axis=0) / BITS_PER_BYTE
        real = np.array([run.crossed_bytes[way] for run in runs])
        found.append(np.asarray(table * real / expected, np.float64))
    return found


def _filled(data: FederatedData, most: int) -> float:
    """Return the mean length of the devices' texts over what a batch may have."""
    held = [device.train for device in data.devices if len(device.train)]
    return float(np.mean([lengths_of(train, tokens=most).mean() for train in held]) / most)


def _some(parts: Sequence[Examples]) -> Examples:
    """Return a few examples, evenly taken from the devices."""
    each = max(_EXAMPLES // max(len(parts), 1), 1)
    return join_examples([(part, np.arange(min(each, len(part)))) for part in parts])
