"""Planning without weights and without training: what a run, or a model on a device, would cost.

Everything comes from the cost model that the virtual clock uses: bytes and FLOPs are exact, seconds
are as good as the speeds and links of the fleet. Unknown before the data are read, and therefore
assumed and said so: every device holds equally many rows, and every sequence is as long as
`data.max_length`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from airtune.cost import Ladder, known_shapes, ladder, peak_memory, predict
from airtune.data import EMBEDDED_MODEL, TOPICS
from airtune.engine.base import mask_observation, mask_problem
from airtune.errors import InfeasibleError, ModelError
from airtune.fleet import Fleet, load_fleet
from airtune.model.base import load_shape
from airtune.plan import (
    Assignments,
    Calibration,
    Floats,
    ModelShape,
    Observation,
    Problem,
    Workload,
)
from airtune.recipe import EMBEDDED, Recipe
from airtune.run import (
    Chosen,
    check_memory,
    choose_method,
    stored_calibration,
    wants_calibration,
    workload_of,
)

SAMPLED_ROUNDS = 8
"""Rounds whose links are drawn; figures are medians over them."""
_CLASSES = 2
"""Labels assumed where the recipe does not list them."""
_PRUNED = (0.0, 0.25, 0.5)


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """What one device would do; seconds, bytes and joules a round, medians over sampled rounds."""

    name: str
    kind: str
    pruned: float
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

    def as_document(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to train a model on a device."""

    precision: str
    checkpointing: bool
    pruned: float
    weights_bytes: float
    activations_bytes: float
    logits_bytes: float
    peak_bytes: float
    fits: bool
    step_s: float
    round_s: float
    upload_bytes: float
    energy_j: float
    """A round."""


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """The ways to train a model on one kind of device, cheapest in memory last."""

    model: str
    parameters: int
    device: str
    memory_bytes: float
    flops_per_s: float
    workload: Workload
    choices: tuple[Choice, ...]
    assumptions: tuple[str, ...]

    def as_document(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Sampled:
    """Columns (rounds, devices) over the sampled rounds; NaN where a device took no part."""

    columns: dict[str, Floats]
    round_s: Floats
    last: list[int]


def plan_recipe(recipe: Recipe) -> Plan:
    """Return what a run of the recipe would cost.

    Raises:
        ModelError: if the model's config cannot be found.
        FleetError: if the fleet is wrong.
        RecipeError: if a value does not fit the model.
        InfeasibleError: if no device has the memory for any pruning, or the method finds no plan.
    """
    shape = shape_of(recipe)
    fleet = load_fleet(recipe.fleet.source, devices=recipe.fleet.devices, seed=recipe.fleet_seed)
    workload = workload_of(recipe, shape, tokens=recipe.data.max_length)
    chosen = choose_method(recipe)
    stored = stored_calibration(recipe, chosen)
    problem = Problem(
        shape=shape, devices=fleet.profiles(np.ones(len(fleet), np.int64)), workload=workload,
        rounds=recipe.train.rounds, seed=recipe.seed, deadline_s=recipe.deadline_s,
        calibration=stored, server_flops_per_s=fleet.server.flops_per_s,
    )  # fmt: skip
    check_memory(problem, fleet)
    sampled = _sample(problem, fleet, chosen)
    return _summary(recipe, fleet, problem, chosen, sampled=sampled)


def plan_model(
    model: str, device: str, *, batch: int = 1, tokens: int = 512, rank: int = 8,
    local_steps: int = 10,
) -> ModelPlan:  # fmt: skip
    """Return the ways to train a model on a kind of device, which fit and what they take.

    Args:
        model: a published name such as Qwen/Qwen2.5-0.5B, a folder, or a hub id (its config only).
        device: a kind of device of the catalogue.
        batch: sequences in a step.
        tokens: length of a sequence.
        rank: of the adapters.
        local_steps: in a round.

    Raises:
        FleetError: if there is no such device.
        ModelError: if the model's config cannot be found.
        InfeasibleError: if nothing fits; the message says what is nearest.
    """
    shape = find_shape(model)
    fleet = load_fleet(device)
    kind_bytes = float(fleet.memory_bytes[0])
    base = Workload(
        batch=batch, tokens=tokens, local_steps=local_steps, rank=rank,
        lora_targets=tuple(linear.name for linear in shape.linears), loss_chunk=256,
        trains_head=shape.labels > 0,
    )  # fmt: skip
    choices = tuple(
        _choice(shape, replace(base, **form), name, pruned, fleet)
        for name, form in _forms()
        for pruned in _PRUNED
    )
    if not any(choice.fits for choice in choices):
        least = min(choices, key=lambda choice: choice.peak_bytes)
        raise InfeasibleError(
            f"nothing fits {model} on {device}: {least.precision} with {least.pruned:.0%} pruned "
            f"still needs {least.peak_bytes / 2**30:.1f} GiB of {kind_bytes / 2**30:.1f} GiB; take "
            "a shorter --tokens, a smaller --batch or a smaller model"
        )
    return ModelPlan(
        model=model, parameters=shape.parameters, device=device, memory_bytes=kind_bytes,
        flops_per_s=float(fleet.flops_per_s[0]), workload=base, choices=choices,
        assumptions=(
            *fleet.assumptions,
            "the loss is computed in chunks of 256 positions, so that logits never exist whole",
            "framework and kernels come on top of the memory shown, about 0.3-0.5 GiB on a CPU",
        ),
    )  # fmt: skip


def shape_of(recipe: Recipe) -> ModelShape:
    """Return the shape of a recipe's model, without a weight.

    Raises:
        ModelError: if its config cannot be found.
    """
    labels = 0
    if recipe.data.task == "classification":
        labels = len(recipe.data.labels) or (8 if recipe.data.source == TOPICS else _CLASSES)
    source = recipe.model.source
    if source == EMBEDDED:
        return load_shape(EMBEDDED_MODEL, labels=labels)
    return find_shape(source, labels=labels, revision=recipe.model.revision)


def find_shape(model: str, *, labels: int = 0, revision: str | None = None) -> ModelShape:
    """Return a shape from a folder, from the published ones, or from a config on the hub.

    Raises:
        ModelError: if there is none.
    """
    if model == EMBEDDED:
        return load_shape(EMBEDDED_MODEL, labels=labels)
    if Path(model).is_dir():
        return load_shape(model, labels=labels, revision=revision)
    shapes = known_shapes()
    name = model.rpartition("/")[2].lower().removesuffix("-hf").removesuffix("-instruct")
    if name in shapes and (labels == shapes[name].labels or not labels):
        return shapes[name]
    try:
        return load_shape(model, labels=labels, revision=revision)
    except ModelError as error:
        raise ModelError(f"{error}; known without a download: {', '.join(shapes)}") from error


def _sample(problem: Problem, fleet: Fleet, chosen: Chosen) -> _Sampled:
    """Let the method plan a few rounds and price each plan."""
    decider = chosen.method.decider
    known = mask_problem(problem, decider.needs)
    state = decider.init(known)
    names = ("pruned", "rank", "peak_bytes", "download_s", "compute_s", "upload_s", "finish_s",
             "upload_bytes", "download_bytes", "energy_j")  # fmt: skip
    count = min(problem.rounds, SAMPLED_ROUNDS)
    columns = {name: np.full((count, len(fleet)), np.nan) for name in names}
    round_s, last = np.full(count, np.nan), []
    for number in range(count):
        links = fleet.links_at(number, 0, 0.0)
        observation = Observation(number, 0.0, links, links.available, fleet.flops_at(number))
        if not links.available.any():
            continue
        plan, state = decider.plan(known, state, mask_observation(observation, decider.needs))
        told = plan.assignments
        cost = predict(problem, told, links=links, flops_per_s=fleet.flops_at(number))
        for name in names[2:]:
            columns[name][number, told.device] = getattr(cost, name)
        columns["pruned"][number, told.device] = problem.shape.pruned_fraction(
            told.prune_heads, told.prune_ffn
        )
        columns["rank"][number, told.device] = told.rank
        able = cost.peak_bytes <= fleet.memory_bytes[told.device]
        finish = np.where(able, cost.finish_s, 0.0)
        round_s[number] = min(finish.max(initial=0.0), problem.deadline_s or np.inf)
        last.append(int(told.device[int(np.argmax(finish))]))
    return _Sampled(columns, round_s, last)


def _summary(
    recipe: Recipe, fleet: Fleet, problem: Problem, chosen: Chosen, *, sampled: _Sampled
) -> Plan:
    levels = ladder(problem.shape, problem.workload)
    middle = {name: _median(column) for name, column in sampled.columns.items()}
    devices = tuple(_device(fleet, index, middle, levels) for index in range(len(fleet)))
    round_s = float(_median(sampled.round_s[:, None])[0])
    rounds = recipe.train.rounds
    totals = {name: float(np.nansum(middle[name])) * rounds
              for name in ("upload_bytes", "download_bytes", "energy_j")}  # fmt: skip
    return Plan(
        recipe=recipe.label, method=chosen.label, model=recipe.model.source,
        parameters=problem.shape.parameters, devices=devices, rounds=rounds,
        rounds_source=_rounds_source(problem.calibration), round_s=round_s, total_s=round_s * rounds,
        total_upload_bytes=totals["upload_bytes"], total_download_bytes=totals["download_bytes"],
        total_energy_j=totals["energy_j"], straggler=_straggler(fleet, sampled, middle),
        assumptions=(
            *fleet.assumptions,
            "every device holds equally many rows",
            f"every sequence is {recipe.data.max_length} tokens long (data.max_length)",
            f"links as drawn in {len(sampled.round_s)} rounds; figures are medians over them",
            *_unmeasured(problem, chosen),
        ),
    )  # fmt: skip


def _device(fleet: Fleet, index: int, middle: dict[str, Floats], levels: Ladder) -> DevicePlan:
    memory = float(fleet.memory_bytes[index])
    peak = float(middle["peak_bytes"][index])
    return DevicePlan(
        name=fleet.names[index], kind=fleet.kinds[index],
        pruned=float(middle["pruned"][index]),
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


def _unmeasured(problem: Problem, chosen: Chosen) -> list[str]:
    """Say so where the method would prune by a calibration that no run has made yet."""
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


def _straggler(fleet: Fleet, sampled: _Sampled, middle: dict[str, Floats]) -> str:
    if not sampled.last:
        return "no device was available"
    index = int(np.bincount(sampled.last).argmax())
    phases = {name: float(middle[f"{name}_s"][index])
              for name in ("download", "compute", "upload")}  # fmt: skip
    longest = max(phases, key=lambda name: phases[name])
    times = sampled.last.count(index)
    return (
        f"{fleet.names[index]} finishes last in {times} of {len(sampled.last)} rounds, mostly "
        f"because of its {longest}"
    )


def _forms() -> Iterable[tuple[str, dict[str, Any]]]:
    """Yield precisions and whether activations are recomputed, from plain to frugal."""
    yield "float32", {"dtype_bytes": 4, "base_bits": 32}
    yield "bfloat16", {"dtype_bytes": 2, "base_bits": 16}
    yield "bfloat16 + checkpointing", {"dtype_bytes": 2, "base_bits": 16, "checkpointing": True}
    yield "4-bit + checkpointing", {"dtype_bytes": 2, "base_bits": 4, "checkpointing": True}


def _choice(
    shape: ModelShape, workload: Workload, precision: str, pruned: float, fleet: Fleet
) -> Choice:
    levels = ladder(shape, workload)
    level = int(np.argmin(np.abs(levels.pruned - pruned)))
    told = Assignments(
        device=np.zeros(1, np.int64), prune_heads=levels.prune_heads[[level]],
        prune_ffn=levels.prune_ffn[[level]], rank=np.array([workload.rank]), share=np.ones(1),
        local_steps=np.array([workload.local_steps]), cut=np.zeros(1, np.int64),
        codec_index=np.zeros(1, np.int64),
    )  # fmt: skip
    problem = Problem(shape, fleet.profiles(np.ones(1, np.int64)), workload, rounds=1, seed=0)
    cost = predict(problem, told, links=fleet.links_at(0, 0, 0.0), flops_per_s=fleet.flops_at(0))
    memory = peak_memory(shape, workload, told)
    parts = {name: float(np.broadcast_to(getattr(memory, name), (1,))[0])
             for name in ("weights", "activations", "logits", "total")}  # fmt: skip
    return Choice(
        precision=precision, checkpointing=workload.checkpointing,
        pruned=float(levels.pruned[level]), weights_bytes=parts["weights"],
        activations_bytes=parts["activations"], logits_bytes=parts["logits"],
        peak_bytes=parts["total"], fits=parts["total"] <= float(fleet.memory_bytes[0]),
        step_s=float(cost.compute_s[0]) / workload.local_steps, round_s=cost.round_s,
        upload_bytes=float(cost.upload_bytes[0]), energy_j=float(cost.energy_j[0]),
    )  # fmt: skip
