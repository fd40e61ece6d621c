"""What a run of a recipe would cost, device by device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from airtune.cost import Ladder, Prediction, ladder, predict
from airtune.engine.base import asked_of, with_work
from airtune.fleet import Fleet
from airtune.keys import generator
from airtune.plan import (
    Assignments,
    Bools,
    Calibration,
    CodecSpec,
    Floats,
    Ints,
    ModelShape,
    Observation,
    Problem,
    mask_observation,
    mask_problem,
)
from airtune.plan.blame import blamed
from airtune.planner.control import (
    control_lines,
    off_air,
    problem_of_control,
    server_s,
    there,
)
from airtune.planner.cuts import cut_peaks, feasible_cuts
from airtune.planner.extra import cap_lines, staging_bytes, staging_lines, staging_s
from airtune.planner.lengths import length_line, planned_workload, typical_problem
from airtune.planner.shape import shape_of
from airtune.recipe import Recipe, fleet_of
from airtune.run import (
    Chosen,
    check_memory,
    choose_method,
    informed,
    stored_measurement,
    stored_sensitivity,
    wants_calibration,
    wants_split_calibration,
)
from airtune.run.build import check_cuts
from airtune.run.inspect import Inspection, inspect_data
from airtune.units import format_seconds

SAMPLED_ROUNDS = 8
"""Rounds whose links are drawn, spread over the run; figures are medians over them."""
_PRICED = ("peak_bytes", "download_s", "compute_s", "upload_s", "finish_s", "upload_bytes",
           "download_bytes", "energy_j")  # fmt: skip


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """What one device would do; seconds, bytes and joules a round, medians over sampled rounds."""

    name: str
    kind: str
    pruned: float
    cut: int
    """Blocks on the device in the last sampled round; 0 = the whole model."""
    codec: str
    """Of what crosses its cut; empty where nothing does."""
    rank: int
    peak_bytes: float
    memory_bytes: float
    fits: bool
    feasible: str
    """Which choices its memory leaves."""
    download_s: float
    compute_s: float
    upload_s: float
    finish_s: float
    upload_bytes: float
    download_bytes: float
    energy_j: float
    stage_bytes: float = 0.0
    """Of the base model, fetched from the server once; 0 where it hands none out."""
    stage_s: float = 0.0
    """With the downlink to itself."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would cost."""

    recipe: str
    method: str
    model: str
    parameters: int
    devices: tuple[DevicePlan, ...]
    rounds: int
    rounds_source: str
    """Where the number of rounds came from."""
    round_s: float
    total_s: float
    total_upload_bytes: float
    total_download_bytes: float
    total_energy_j: float
    straggler: str
    """The device that most often finishes last, and why."""
    assumptions: tuple[str, ...]
    data: tuple[str, ...] = ()
    """What would become of the data's rows: left out, cut, in both parts."""

    def as_document(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Sampled:
    """Columns (rounds, devices) over the sampled rounds; NaN where a device took no part."""

    columns: dict[str, Floats]
    round_s: Floats
    """Of every planned round; a sampled one takes several where only a part of the fleet is asked."""
    last: list[int]
    cut: Ints
    """Shape (devices,), of the last round in which each took part."""
    codec: list[CodecSpec | None]
    """Of what crosses each device's cut; None where nothing does."""

    @property
    def part(self) -> float:
        """The part of the rounds in which a device is asked."""
        return len(self.columns["pruned"]) / max(len(self.round_s), 1)


def plan_recipe(recipe: Recipe) -> Plan:
    """Return what a run of the recipe would cost.

    Raises:
        ModelError: if the model's config cannot be found.
        FleetError: if the fleet is wrong.
        RecipeError: if a value does not fit the model.
        InfeasibleError: if no device has the memory for any pruning, or the method finds no plan.
    """
    found = inspect_data(recipe)
    shape = shape_of(recipe, classes=0 if found is None else len(found.data.labels))
    check_cuts(recipe, shape)
    fleet = fleet_of(recipe)
    workload = planned_workload(recipe, shape, found)
    chosen = choose_method(recipe)
    visits = recipe.train.rounds * workload.local_steps * workload.batch
    problem = Problem(
        shape=shape, devices=fleet.profiles(np.full(len(fleet), visits)), workload=workload,
        rounds=recipe.train.rounds, seed=recipe.seed, deadline_s=recipe.deadline_s,
        server_flops_per_s=fleet.server.flops_per_s,
        server_memory_bytes=fleet.server.memory_bytes,
        device_bytes_per_month=recipe.limits.device_bytes_per_month,
        joules_per_round=recipe.limits.joules_per_round,
    )  # fmt: skip
    problem = informed(with_work(problem, chosen.method.work), stored_measurement(recipe, chosen))
    problem = replace(problem, sensitivity=stored_sensitivity(recipe, chosen))
    check_memory(problem, fleet, may_cut=chosen.method.may_cut)
    problem = problem_of_control(chosen, problem) if chosen.is_control else problem
    part = 1.0 if chosen.is_control else recipe.fleet.participation
    typical = typical_problem(problem, found)
    sampled = _sample(problem, fleet, chosen, typical=typical, participation=part)
    return _summary(recipe, fleet, problem, chosen, sampled=sampled, found=found)


def _sample(
    problem: Problem, fleet: Fleet, chosen: Chosen, *, typical: Problem, participation: float
) -> _Sampled:  # fmt: skip
    """Let the method plan a few rounds and price each plan, the fleet part by part in each.

    The method plans as in a run, and memory is that of the longest text; the rest is priced by
    `typical`, the problem at the usual length.
    """
    decider = chosen.method.decider
    known = mask_problem(problem, decider.needs)
    with blamed(chosen.method, "init"):
        state = decider.init(known)
    count = min(problem.rounds, SAMPLED_ROUNDS)
    columns = {name: np.full((count, len(fleet)), np.nan) for name in ("pruned", "rank", *_PRICED)}
    round_s: list[float] = []
    last: list[int] = []
    cut = np.zeros(len(fleet), np.int64)
    codec: list[CodecSpec | None] = [None] * len(fleet)
    for row, number in enumerate(np.linspace(0, problem.rounds - 1, count).astype(int).tolist()):
        links, flops_per_s = fleet.links_at(number, 0, 0.0), fleet.flops_at(number)
        present = there(chosen, links.available)
        for asked in turns(present, participation, generator(problem.seed, "plan", number)):
            observation = Observation(number, 0.0, links, asked, flops_per_s)
            seen = mask_observation(observation, decider.needs)
            with blamed(chosen.method, "plan"):
                plan, state = decider.plan(known, state, seen)
            told = plan.assignments
            peak_bytes = predict(problem, told, links=links, flops_per_s=flops_per_s).peak_bytes
            cost = predict(typical, told, links=links, flops_per_s=flops_per_s)
            cost = replace(cost, peak_bytes=peak_bytes)
            cost = off_air(chosen, typical, told, cost) if chosen.is_control else cost
            _note(columns, row, problem.shape, told, cost)
            cut[told.device] = told.cut
            for one in told if told.cut.any() else ():
                codec[one.device] = one.codec if one.cut else None
            able = cost.peak_bytes <= fleet.memory_bytes[told.device]
            finish = np.where(able & np.isfinite(cost.finish_s), cost.finish_s, 0.0)
            alone_s = server_s(chosen, typical) if chosen.is_control else 0.0
            round_s.append(min(finish.max(initial=0.0), problem.deadline_s or np.inf) + alone_s)
            if finish.any():
                last.append(int(told.device[int(np.argmax(finish))]))
    return _Sampled(columns, np.array(round_s), last, cut, codec)


def _note(
    columns: dict[str, Floats], row: int, shape: ModelShape, told: Assignments, cost: Prediction
) -> None:
    """Put down what the devices of a plan are told and what it costs them."""
    columns["pruned"][row, told.device] = shape.pruned_fraction(told.prune_heads, told.prune_ffn)
    columns["rank"][row, told.device] = told.rank
    for name in _PRICED:
        columns[name][row, told.device] = getattr(cost, name)


def turns(present: Bools, participation: float, draw: np.random.Generator) -> Iterator[Bools]:
    """Yield who is asked together, until everybody who is there was asked; nobody = nothing.

    Args:
        present: shape (devices,).
        participation: the part of them that a round asks, in (0, 1].
        draw: mixes them; all are asked in one turn where the part is 1.
    """
    order = draw.permutation(np.flatnonzero(present))
    together = asked_of(len(order), participation)
    for first in range(0, len(order), together):
        # the last turn is filled up with the first of the order
        asked = np.zeros(present.shape, np.bool_)
        asked[np.take(order, range(first, first + together), mode="wrap")] = True
        yield asked


def _summary(
    recipe: Recipe, fleet: Fleet, problem: Problem, chosen: Chosen, *, sampled: _Sampled,
    found: Inspection | None,
) -> Plan:  # fmt: skip
    levels = ladder(problem.shape, problem.workload, problem.sensitivity)
    middle = {name: _median(column) for name, column in sampled.columns.items()}
    peaks = {
        predicts: cut_peaks(problem, predicts=predicts)
        for predicts in {codec.predict for codec in sampled.codec if codec is not None}
    }
    devices = tuple(
        row if codec is None or not cut else replace(
            row, cut=cut, codec=codec.label,
            feasible=feasible_cuts(peaks[codec.predict], row.memory_bytes),
        )
        for row, cut, codec in zip(
            (_device(fleet, index, middle, levels) for index in range(len(fleet))),
            sampled.cut.tolist(), sampled.codec, strict=True,
        )
    )  # fmt: skip
    if chosen.is_control:
        devices = tuple(replace(row, feasible="none, it is a control") for row in devices)
    staged = 0.0 if chosen.is_control else staging_bytes(recipe, problem)
    drawn = len(sampled.columns["pruned"])
    stage_s = staging_s(fleet, staged, rounds=drawn)
    devices = tuple(
        replace(row, stage_bytes=staged, stage_s=float(seconds))
        for row, seconds in zip(devices, stage_s, strict=True)
    )
    round_s = float(np.median(sampled.round_s)) if sampled.round_s.size else float("nan")
    rounds = problem.rounds
    totals = {name: float(np.nansum(middle[name])) * rounds * sampled.part
              for name in ("upload_bytes", "download_bytes", "energy_j")}  # fmt: skip
    return Plan(
        recipe=recipe.label, method=chosen.label, model=recipe.model.source,
        parameters=problem.shape.parameters, devices=devices, rounds=rounds,
        data=() if found is None else tuple(line.marked for line in found.data.ledger.lines()),
        rounds_source="one, in which nothing is trained" if rounds < recipe.train.rounds
        else _rounds_source(problem.calibration), round_s=round_s, total_s=round_s * rounds,
        total_upload_bytes=totals["upload_bytes"], total_download_bytes=totals["download_bytes"],
        total_energy_j=totals["energy_j"],
        straggler=_straggler(fleet, sampled, middle, is_control=chosen.is_control),
        assumptions=(
            *_unmeasured(problem, chosen),
            *control_lines(chosen),
            *fleet.assumptions,
            "every device holds equally many rows",
            length_line(recipe, found),
            f"links as drawn in {drawn} rounds of the run; figures are medians over them",
            *([f"{sampled.part:.3g} of the devices are asked a round (fleet.participation), in a "
               "random order; a device's figures are of a round that asks it"]
              if sampled.part < 1.0 else []),
            *(["no sample is seen twice, so nothing is saved by remembering it"]
              if problem.work.device_frozen else []),
            *staging_lines(fleet.names, staged, stage_s),
            *cap_lines(fleet.names, middle["upload_bytes"] + middle["download_bytes"], problem, staged,
                       part=sampled.part),
            *_missed(middle["finish_s"], problem),
        ),
    )  # fmt: skip


def _device(fleet: Fleet, index: int, middle: dict[str, Floats], levels: Ladder) -> DevicePlan:
    memory = float(fleet.memory_bytes[index])
    peak = float(middle["peak_bytes"][index])
    return DevicePlan(
        name=fleet.names[index], kind=fleet.kinds[index],
        pruned=float(middle["pruned"][index]), cut=0, codec="",
        rank=0 if np.isnan(middle["rank"][index]) else int(middle["rank"][index]),
        peak_bytes=peak, memory_bytes=memory, fits=bool(peak <= memory),
        feasible=feasible(levels, memory),
        **{name: float(middle[name][index]) for name in (
            "download_s", "compute_s", "upload_s", "finish_s", "upload_bytes", "download_bytes",
            "energy_j")},
    )  # fmt: skip


def feasible(levels: Ladder, memory_bytes: float) -> str:
    """Return in words which pruning levels a memory leaves."""
    fits = np.flatnonzero(levels.peak_bytes <= memory_bytes)
    if not len(fits):
        return "nothing fits"
    if fits[0] == 0:
        return f"any, 0-{levels.pruned[-1]:.0%} pruned"
    return f"{levels.pruned[fits[0]]:.0%} pruned or more"


def _median(column: Floats) -> Floats:
    """Return medians over rounds, shape (devices,); NaN where a device never took part."""
    seen = ~np.isnan(column).all(axis=0)
    found = np.full(column.shape[1], np.nan)
    found[seen] = np.nanmedian(column[:, seen], axis=0)
    return found


def _missed(finish_s: Floats, problem: Problem) -> list[str]:
    """Say so where devices would mostly be too late for the deadline, and the least one needs."""
    deadline_s, asked = problem.deadline_s, finish_s[~np.isnan(finish_s)]
    late = 0 if deadline_s is None else int(np.sum(asked > deadline_s))
    if deadline_s is None or not late:
        return []
    said = f"{late} of {asked.size} devices miss the deadline of {format_seconds(deadline_s)}"
    if late < asked.size:
        return [said]
    least = int(np.nanargmin(finish_s))
    needed = format_seconds(float(finish_s[least]))
    return [
        f"{said}; no round trains anything. The least is {needed}, of {problem.devices.names[least]}: "
        "raise deadline_s"
    ]


def _unmeasured(problem: Problem, chosen: Chosen) -> list[str]:
    """Say so where the method would prune by a calibration that no run has made yet."""
    if problem.split is None and wants_split_calibration(chosen):
        return [
            "no calibration of codecs is stored for this model and data, so activations cross "
            "uncompressed; a first run measures it, or set method.codec"
        ]
    if problem.calibration is not None or not wants_calibration(chosen):
        return []
    return [
        "no calibration is stored for this model and data, so no pruning is planned beyond what "
        "memory forces; a first run measures it, or set method.budget"
    ]


def _rounds_source(stored: Calibration | None) -> str:
    said = "train.rounds of the recipe; how many a target takes is only known by training"
    if stored is None:
        return said
    pairs = zip(stored.budget[1:], stored.rounds_ratio[1:], strict=True)
    costs = ", ".join(f"{ratio:.2f} times at {budget:.0%} pruned" for budget, ratio in pairs)
    return f"{said}; the stored calibration says pruning needs {costs}"


def _straggler(
    fleet: Fleet, sampled: _Sampled, middle: dict[str, Floats], *, is_control: bool
) -> str:
    if not sampled.last:
        return "no device trains" if is_control else "no device was available"
    index = int(np.bincount(sampled.last).argmax())
    phases = {name: float(middle[f"{name}_s"][index])
              for name in ("download", "compute", "upload")}  # fmt: skip
    longest = max(phases, key=lambda name: phases[name])
    times = sampled.last.count(index)
    return (
        f"{fleet.names[index]} finishes last in {times} of {len(sampled.last)} rounds, mostly "
        f"because of its {longest}"
    )
