"""From a checked recipe, and what it loads, to problem and engine settings."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from airtune.cost import ladder, peak_memory
from airtune.data import answer_of
from airtune.engine.base import EngineSettings
from airtune.errors import InfeasibleError, RecipeError
from airtune.fleet import Fleet
from airtune.methods import AT_SERVER, may_cut
from airtune.methods.split_lines import check_cut
from airtune.model.batch import IGNORED
from airtune.model.images import Examples, Images, image_tokens
from airtune.plan import Assignments, Ints, ModelShape, Problem, Workload, whole_model
from airtune.recipe import Recipe
from airtune.run.load import Assets, is_vision, load_assets
from airtune.units import format_bytes
from airtune.work.jobs import TrainSettings

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Pieces:
    """All that a run is made of, before a method is chosen."""

    recipe: Recipe
    assets: Assets
    problem: Problem
    """Without calibration."""
    engine: EngineSettings


def build_pieces(recipe: Recipe, assets: Assets | None = None) -> Pieces:
    """Turn a recipe into objects.

    Args:
        recipe: checked.
        assets: what another run of the same model, data, fleet and seed has loaded; None = load.

    Raises:
        RecipeError: if a value does not fit the model.
        DataError: if the data are missing, malformed or too few.
        ModelError: if the model cannot be loaded.
        FleetError: if the fleet is wrong.
        InfeasibleError: if no device has the memory for any pruning of the model, nor for a cut
            where the method may cut.
    """
    assets = load_assets(recipe) if assets is None else assets
    check_cuts(recipe, assets.base.shape)
    workload = _workload(recipe, assets)
    samples = np.array([len(device.train) for device in assets.data.devices])
    problem = bare_problem(recipe, assets.base.shape, workload, assets.fleet, samples)
    check_memory(problem, assets.fleet, recipe.method.name, may_cut=_may_cut(recipe))
    return Pieces(recipe, assets, problem, engine_settings(recipe))


def bare_problem(
    recipe: Recipe, shape: ModelShape, workload: Workload, fleet: Fleet, samples: Ints
) -> Problem:
    """Return a recipe's problem before a method is chosen and anything is measured.

    Args:
        recipe: checked.
        shape: of its model.
        workload: what the training costs depend on.
        fleet: the devices.
        samples: training sequences that each holds, shape (devices,).
    """
    return Problem(
        shape=shape,
        devices=fleet.profiles(samples),
        workload=workload,
        rounds=recipe.train.rounds,
        seed=recipe.seed,
        deadline_s=recipe.deadline_s,
        server_flops_per_s=fleet.server.flops_per_s,
        device_bytes_per_month=recipe.limits.device_bytes_per_month,
        joules_per_round=recipe.limits.joules_per_round,
        seconds=recipe.train.seconds,
    )


def workload_of(recipe: Recipe, shape: ModelShape, *, tokens: int, scored: float = 1.0) -> Workload:
    """Return what the training costs depend on.

    Args:
        recipe: checked.
        shape: of the model.
        tokens: padded length of a sequence.
        scored: fraction of a language model's positions whose loss counts.

    Raises:
        RecipeError: if a target module or the rank does not fit the model.
    """
    known = tuple(linear.name for linear in shape.linears)
    targets = recipe.lora.target_modules
    names = known if targets == "all-linear" else tuple(targets)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"this model has {', '.join(known)}"
            raise RecipeError(f"lora.target_modules: no layer {name!r}, {hint}")
    if recipe.lora.r > shape.width:
        raise RecipeError(
            f"lora.r must be at most the model's width of {shape.width}, got {recipe.lora.r}"
        )
    batch, parts = recipe.train.per_device_train_batch_size, recipe.split.micro_batches
    if batch % parts:
        raise RecipeError(
            f"split.micro_batches must divide train.per_device_train_batch_size of {batch}, got {parts}"
        )
    base_bytes = _BYTES[recipe.model.dtype]
    return Workload(
        batch=batch,
        tokens=tokens,
        micro_batches=parts,
        local_steps=recipe.train.local_steps,
        rank=recipe.lora.r,
        lora_targets=names,
        dtype_bytes=base_bytes,
        base_bits=4 if recipe.model.load_in_4bit else 8 * base_bytes,
        checkpointing=recipe.train.gradient_checkpointing,
        loss_chunk=recipe.train.loss_chunk,
        scored=scored,
        trains_head=recipe.data.task != "causal-lm",
        upload=recipe.upload.spec(),
        download=recipe.download.spec(),
        upload_feedback=recipe.upload.feedback,
    )


def engine_settings(recipe: Recipe) -> EngineSettings:
    """Return how the local engine runs this recipe."""
    train = TrainSettings(
        learning_rate=recipe.train.learning_rate,
        weight_decay=recipe.train.weight_decay,
        max_grad_norm=recipe.train.max_grad_norm,
        scale=recipe.lora.lora_alpha / recipe.lora.r,
        dropout=recipe.lora.lora_dropout,
    )
    return EngineSettings(
        train=train,
        participation=recipe.fleet.participation,
        dropout=recipe.fleet.dropout,
        learns=recipe.fleet.learn,
        threads=recipe.threads or torch.get_num_threads(),
        answer_of=answer_of if recipe.evaluation.exact_match else None,
        max_new_tokens=recipe.evaluation.max_new_tokens,
    )


def check_cuts(recipe: Recipe, shape: ModelShape) -> None:
    """Refuse cuts that leave the server nothing.

    Raises:
        RecipeError: if one of `split.cuts` is not inside the model.
        InfeasibleError: if the method's own cut is not.
    """
    own = recipe.method.settings.get("cut")
    if isinstance(own, int) and _may_cut(recipe):
        check_cut(own, shape.blocks)
    if recipe.split.cuts and recipe.split.cuts[-1] >= shape.blocks:
        raise RecipeError(
            f"split.cuts must be at most {shape.blocks - 1}, so that the server has one of this "
            f"model's {shape.blocks} blocks, got {recipe.split.cuts[-1]}"
        )


def check_memory(problem: Problem, fleet: Fleet, method: str, *, may_cut: bool) -> None:
    """Refuse a fleet on which nothing can train; what trains at the server needs its memory alone.

    Args:
        problem: model and workload.
        fleet: the devices.
        method: its name.
        may_cut: the method may leave blocks to the server.

    Raises:
        InfeasibleError: if neither the heaviest pruning nor, with a method that may cut, the first
            cut fits on any device; or if the server does not hold the whole model for `pooled`.
    """
    if method in AT_SERVER:
        if method == "pooled":
            _check_server(problem, fleet)
        return
    least = float(ladder(problem.shape, problem.workload).peak_bytes.min())
    if may_cut:
        least = min(least, _first_cut_bytes(problem))
    tried = "a first cut or the heaviest pruning" if may_cut else "the heaviest pruning"
    most = int(np.argmax(fleet.memory_bytes))
    if least > fleet.memory_bytes[most]:
        raise InfeasibleError(
            f"no device of fleet {fleet.name!r} has the memory: {tried} still needs "
            f"{format_bytes(least)}, and {fleet.names[most]}, which has most, has "
            f"{format_bytes(float(fleet.memory_bytes[most]))}; lower "
            "train.per_device_train_batch_size or data.max_length, set "
            "train.gradient_checkpointing or train.loss_chunk, or take a smaller model"
        )


def _check_server(problem: Problem, fleet: Fleet) -> None:
    whole = whole_model(
        np.zeros(1, np.int64), rank=problem.workload.rank, local_steps=1, share=np.ones(1)
    )
    needed = float(peak_memory(problem.shape, problem.workload, whole).total[0])
    if needed > fleet.server.memory_bytes:
        raise InfeasibleError(
            f"pooled trains the whole model at the server, which takes {format_bytes(needed)}, and "
            f"the server of fleet {fleet.name!r} has {format_bytes(fleet.server.memory_bytes)}; "
            "raise the fleet's server.memory_gib, or lower train.per_device_train_batch_size or "
            "data.max_length"
        )


def _may_cut(recipe: Recipe) -> bool:
    return may_cut(recipe.method.name, recipe.method.settings)


def _first_cut_bytes(problem: Problem) -> float:
    """Return what a device needs that holds one block and leaves the server the rest."""
    if problem.shape.blocks < 2:
        return float("inf")
    one, zero = np.ones(1, np.int64), np.zeros(1)
    assignments = Assignments(
        device=np.zeros(1, np.int64),
        prune_heads=zero,
        prune_ffn=zero,
        rank=one * problem.workload.rank,
        share=np.ones(1),
        local_steps=one,
        cut=one,
        codec_index=np.zeros(1, np.int64),
    )
    return float(peak_memory(problem.shape, problem.workload, assignments).total[0])


def pinned(recipe: Recipe) -> Recipe:
    """Return the recipe with the number of threads filled in, so that a run repeats exactly."""
    return recipe.model_copy(update={"threads": recipe.threads or torch.get_num_threads()})


def _workload(recipe: Recipe, assets: Assets) -> Workload:
    """Price a sequence at the longest that any device trains on."""
    held = [device.train for device in assets.data.devices]
    if is_vision(recipe):
        tokens = image_tokens(assets.base.network.config)
        return workload_of(recipe, assets.base.shape, tokens=tokens)
    texts = [part.tokens for part in held if not isinstance(part, Images)]
    longest = max((len(row) for part in texts for row in part), default=2)
    scored = scored_share(held, longest)
    return workload_of(recipe, assets.base.shape, tokens=longest, scored=scored)


def scored_share(held: Sequence[Examples], tokens: int) -> float:
    """Return the fraction of padded positions whose loss counts, over all training examples.

    The first token of a text is predicted by nothing, so it never counts.
    """
    rows = [row for part in held if isinstance(part.targets, tuple) for row in part.targets]
    if not rows:
        return 1.0
    return sum(int((row[1:] != IGNORED).sum()) for row in rows) / (len(rows) * tokens)
