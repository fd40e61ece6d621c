"""What pruning costs this model on this data: a short measurement, stored and used again.

Short federations of the ordinary loop are run on a few of the devices, one for each mean pruning
rate, none among them. The devices' rates are spread evenly from 0 to twice the mean and change
hands every round, as a method that follows the channels would have it; the criterion is the
method's own. Data, batches and first adapters are the same in all of them, so their difference is
what pruning costs.

    rounds_ratio(rate) = rounds needed with it / rounds needed without, to the same loss
    quality_loss(rate) = relative loss increase after the same rounds

Rates are tried from small to large, and no more after one whose loss runs away: that ends no better
than the untuned model began, or needs ten times the rounds. The largest rate of a device in the runs
before is the most that is then pruned.

Both are read off the validation curves by interpolation, over the last quarter of the rounds, and
made to rise with the rate. The ratio grows with the rounds (a pruned model lags more, the lower the
loss already is), so a few devices over as many rounds as the run will need measure it better than
many devices over a few. Expected error: a guide from one seed, good to tell "costs nearly nothing"
from "costs twice the rounds". It stands off the clock, for every method; its cost in device-seconds
is reported beside it.

Source: the form K(budget) T(budget) that it serves is reconstructed from arXiv 2602.01024.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from airtune.calibrate.measured import Measured
from airtune.calibrate.short import Setting, short_runs, some_devices
from airtune.cost import Ladder, ladder
from airtune.keys import generator
from airtune.methods.memoryless import Memoryless
from airtune.plan import (
    Calibration,
    Floats,
    Need,
    Observation,
    Problem,
    RoundPlan,
    State,
    whole_model,
)

_WORST_RATIO = 10.0
"""Of rounds; what a rate gets that makes next to no progress."""


def calibrate_pruning(setting: Setting, budgets: tuple[float, ...]) -> Measured:
    """Measure what pruning costs.

    Args:
        setting: Model, data, local work and size of the short runs.
        budgets: Mean pruning rates beside 0, rising.

    Raises:
        TrainingError: if the short runs give no usable update.
    """
    began = time.perf_counter()
    small = some_devices(setting)
    runs: list[tuple[tuple[float, ...], float]] = []
    most, asked = 0.0, (0.0, *budgets)
    for mean, run in zip(
        asked, short_runs(setting, small, map(SpreadPruning, asked)), strict=False
    ):
        runs.append(run)
        if runs_away(runs[0][0], run[0]):
            break
        most = min(2.0 * mean, 1.0)
    rates = asked[: len(runs)]
    curves = tuple(curve for curve, _ in runs)
    device_s = setting.device_s(sum(spent for _, spent in runs))
    source = (
        f"{len(rates)} short runs of {setting.rounds} rounds on {len(small.devices)} devices, "
        f"{device_s:.0f} device-seconds at the median speed, off the clock"
    )
    return Measured(
        calibration=replace(read_curves(rates, curves, source), most=most), device_s=device_s,
        wall_s=time.perf_counter() - began, curves=curves, fingerprint=setting.base.fingerprint,
    )  # fmt: skip


def runs_away(dense: tuple[float, ...], curve: tuple[float, ...]) -> bool:
    """Return whether pruning has cost more than training can make up for.

    Args:
        dense: loss before the first round and after each, nothing pruned.
        curve: the same with a pruning rate.

    >>> runs_away((4.0, 3.0, 2.0), (4.0, 3.5, 3.0)), runs_away((4.0, 3.0, 2.0), (4.0, 5.0, 4.5))
    (False, True)
    """
    has_learned = dense[-1] < dense[0]
    return has_learned and (curve[-1] >= curve[0] or _rounds_ratio(dense, curve) >= _WORST_RATIO)


@dataclass(frozen=True, slots=True)
class SpreadPruning(Memoryless):
    """The decider of a short federation: rates from 0 to twice the mean, dealt anew each round."""

    mean: float
    needs: frozenset[Need] = frozenset()

    def plan(
        self, problem: Problem, state: State, observation: Observation
    ) -> tuple[RoundPlan, State]:
        """Give every device a level of the ladder near its rate."""
        levels = ladder(problem.shape, problem.workload, problem.sensitivity)
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
