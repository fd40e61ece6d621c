"""What a run of a recipe would cost, device by device."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from airtune.cost import Ladder, cut_peaks, ladder
from airtune.fleet import Fleet
from airtune.plan import Floats
from airtune.planner.cuts import feasible_cuts
from airtune.planner.extra import held_blocks, staging_bytes, staging_s
from airtune.planner.result import DevicePlan, Money, Plan
from airtune.planner.sample import Sampled, Totals, draws_of, sample
from airtune.planner.setting import PlanSetting, setting_of
from airtune.planner.words import assumptions, feasible, rounds_source, straggler, warnings
from airtune.recipe import Recipe

_JOULES_PER_KWH = 3.6e6
_BYTES_PER_GB = 1e9


def plan_recipe(recipe: Recipe, *, quantile: float | None = None) -> Plan:
    """Return what a run of the recipe would cost.

    Args:
        recipe: checked.
        quantile: of the rounds' times to state beside their median, in (0, 1); more links and
            speeds are drawn for it.

    Raises:
        ModelError: if the model's config cannot be found.
        FleetError: if the fleet is wrong.
        RecipeError: if a value does not fit the model.
        InfeasibleError: if no device has the memory for any pruning, or the method finds no plan.
    """
    return plan_of(setting_of(recipe), quantile=quantile)


def plan_of(
    setting: PlanSetting, *, quantile: float | None = None, sampled: Sampled | None = None
) -> Plan:
    """Return the plan of a setting; see `plan_recipe`.

    Args:
        setting: what is planned.
        quantile: as of `plan_recipe`.
        sampled: its rounds at the draws of this quantile; None = plan them.
    """
    recipe, fleet, problem, chosen = (
        setting.recipe,
        setting.fleet,
        setting.problem,
        setting.chosen,
    )
    if sampled is None:
        sampled = sample(setting, draws_of(problem.rounds, quantile))
    totals = sampled.totals(problem.rounds)
    staged = staged_by(setting)
    stage_s = staging_s(fleet, staged, sampled.draws)
    is_short = problem.rounds < recipe.train.rounds
    return Plan(
        recipe=recipe.label,
        method=chosen.label,
        model=recipe.model.source,
        parameters=problem.shape.parameters,
        devices=_devices(setting, sampled, staged, stage_s),
        rounds=problem.rounds,
        data=()
        if setting.found is None
        else tuple(line.marked for line in setting.found.ledger.lines()),
        rounds_source="one round, in which nothing is trained"
        if is_short
        else rounds_source(problem.pruning),
        round_s=totals.round_s,
        total_s=totals.total_s,
        total_upload_bytes=totals.upload_bytes,
        total_download_bytes=totals.download_bytes,
        total_energy_j=totals.energy_j,
        total_flops=totals.flops,
        straggler=straggler(fleet, sampled, is_control=chosen.is_control),
        assumptions=tuple(assumptions(setting, sampled, staged, stage_s)),
        warnings=tuple(warnings(setting, sampled)),
        money=money_of(recipe, totals, float(staged.sum())),
        quantile=quantile,
        round_quantile_s=None
        if quantile is None
        else sampled.totals(problem.rounds, quantile).round_s,
    )


def staged_by(setting: PlanSetting) -> Floats:
    """Return what each device fetches of the base model once, in bytes, shape (devices,)."""
    held = held_blocks(setting.problem, setting.fleet, setting.chosen)
    staged = staging_bytes(setting.recipe, setting.problem, held)
    return staged * (not setting.chosen.is_control)


def money_of(recipe: Recipe, totals: Totals, staged_bytes: float) -> Money | None:
    """Return what a run costs at the recipe's tariff; None where it states none.

    Args:
        recipe: states the tariff.
        totals: energy and bytes of the run.
        staged_bytes: of the base, to all devices together.
    """
    tariff = recipe.tariff
    if tariff.per_kwh is None and tariff.per_gb is None:
        return None
    sent = totals.upload_bytes + totals.download_bytes + staged_bytes
    return Money(
        electricity=totals.energy_j / _JOULES_PER_KWH * (tariff.per_kwh or 0.0),
        data=sent / _BYTES_PER_GB * (tariff.per_gb or 0.0),
        currency=tariff.currency,
    )


def _devices(
    setting: PlanSetting, sampled: Sampled, staged: Floats, stage_s: Floats
) -> tuple[DevicePlan, ...]:
    """Return a row for each device of the fleet."""
    problem, middle = setting.problem, sampled.middle
    levels = ladder(problem.shape, problem.workload, problem.sensitivity)
    peaks = {
        predicts: cut_peaks(problem, predicts=predicts)
        for predicts in {codec.predict for codec in sampled.codec if codec is not None}
    }
    rows = []
    for index, (cut, codec) in enumerate(zip(sampled.cut.tolist(), sampled.codec, strict=True)):
        row = _device(setting.fleet, index, middle, levels)
        if codec is not None and cut:
            left = feasible_cuts(peaks[codec.predict], row.memory_bytes)
            row = replace(row, cut=cut, codec=codec.label, feasible=left)
        if setting.chosen.is_control:
            row = replace(row, feasible="none (control)")
        rows.append(replace(row, stage_bytes=float(staged[index]), stage_s=float(stage_s[index])))
    return tuple(rows)


def _device(fleet: Fleet, index: int, middle: dict[str, Floats], levels: Ladder) -> DevicePlan:
    memory = float(fleet.memory_bytes[index])
    peak = float(middle["peak_bytes"][index])
    return DevicePlan(
        name=fleet.names[index],
        kind=fleet.kinds[index],
        pruned=float(middle["pruned"][index]),
        cut=0,
        codec="",
        rank=0 if np.isnan(middle["rank"][index]) else int(middle["rank"][index]),
        peak_bytes=peak,
        memory_bytes=memory,
        fits=bool(peak <= memory),
        feasible=feasible(levels, memory),
        **{
            name: float(middle[name][index])
            for name in (
                "share",
                "local_steps",
                "download_s",
                "compute_s",
                "upload_s",
                "finish_s",
                "upload_bytes",
                "download_bytes",
                "energy_j",
            )
        },
    )
