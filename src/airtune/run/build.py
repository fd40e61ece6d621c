"""From a checked recipe to model, data, fleet, problem and method."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache

from airtune.cost import ladder, peak_memory
from airtune.data import (
    EMBEDDED_MODEL,
    EMBEDDED_VISION,
    FederatedData,
    answer_of,
    load_federated,
    load_federated_images,
)
from airtune.data.exchange import settle_end_
from airtune.engine.base import EngineSettings
from airtune.errors import InfeasibleError, ModelError, RecipeError
from airtune.fleet import Fleet
from airtune.methods import may_cut
from airtune.methods.split_lines import check_cut
from airtune.model.admission import agree_
from airtune.model.base import BaseModel, load_base, load_class_names
from airtune.model.batch import IGNORED
from airtune.model.families import Config
from airtune.model.frame import load_frame
from airtune.model.gguf.source import is_gguf
from airtune.model.images import Examples, Images, image_tokens, load_image_base
from airtune.model.part import load_part
from airtune.model.source import Tokenizer, load_config, load_tokenizer
from airtune.plan import Assignments, Ints, ModelShape, Problem, Workload
from airtune.recipe import EMBEDDED, Recipe, fleet_of
from airtune.units import format_bytes
from airtune.work.train import TrainSettings

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Assets:
    """What all methods of a comparison share at one seed."""

    base: BaseModel
    data: FederatedData
    fleet: Fleet


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
    check_memory(problem, assets.fleet, may_cut=_may_cut(recipe))
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
        shape=shape, devices=fleet.profiles(samples), workload=workload,
        rounds=recipe.train.rounds, seed=recipe.seed, deadline_s=recipe.deadline_s,
        server_flops_per_s=fleet.server.flops_per_s,
        device_bytes_per_month=recipe.limits.device_bytes_per_month,
        joules_per_round=recipe.limits.joules_per_round, seconds=recipe.train.seconds,
    )  # fmt: skip


def load_assets(recipe: Recipe) -> Assets:
    """Load model, data and fleet of a recipe.

    Raises:
        DataError: if the data are missing, malformed or too few.
        ModelError: if the model cannot be loaded.
        FleetError: if the fleet is wrong.
        RecipeError: if texts may be longer than the model reads.
    """
    fleet = fleet_of(recipe)
    source, revision, count = model_source(recipe), recipe.model.revision, len(fleet)
    known = load_class_names(source, revision=revision)
    if is_vision(recipe):
        frame = load_frame(source, revision=revision)
        data = load_federated_images(
            recipe.data, frame=frame, devices=count, seed=recipe.seed, known=known
        )
    else:
        tokenizer = read_tokenizer(recipe)
        data = load_federated(
            recipe.data, tokenizer=tokenizer, devices=count, seed=recipe.seed, known=known,
            vocabulary=int(load_config(source, revision).vocab_size),
        )  # fmt: skip
    base = load_model(recipe, classes=data.labels)
    check_length(recipe, base)
    return Assets(base, data, fleet)


def is_vision(recipe: Recipe) -> bool:
    """Return whether a recipe's model reads images."""
    return recipe.data.task == "image-classification"


def load_model(recipe: Recipe, *, classes: Sequence[str], device: str | None = None) -> BaseModel:
    """Load the base model of a recipe.

    Args:
        recipe: checked.
        classes: their names in the order of their ids; () = a language model.
        device: where to, instead of where the recipe says; the weights are then whole, not in 4
            bits, so that they can be saved.

    Raises:
        ModelError: if it cannot be loaded or does not fit the task.
    """
    section = recipe.model
    place = section.device if device is None else device
    packed = section.load_in_4bit and device is None
    if not is_vision(recipe):
        base = load_base(
            model_source(recipe), labels=len(classes), classes=classes, dtype=section.dtype,
            device=place, load_in_4bit=packed, revision=section.revision,
            allow_pickle=section.allow_pickle,
        )  # fmt: skip
        if base.tokenizer is not None and not classes:
            settle_end_(base.tokenizer, recipe.data.template)
            agree_(base.network, base.tokenizer)
        return base
    return load_image_base(
        model_source(recipe), labels=len(classes), classes=classes, dtype=section.dtype,
        device=place, revision=section.revision, allow_pickle=section.allow_pickle,
    )  # fmt: skip


def load_held(
    recipe: Recipe, *, classes: Sequence[str], blocks: int | None, stays: bool
) -> BaseModel:
    """Load the first blocks of a recipe's model and what surrounds them, or all of it.

    A model in 4 bits or in a GGUF file is not read in part.

    Args:
        recipe: checked.
        classes: as for `load_model`.
        blocks: how many; None = all.
        stays: labels stay, so that the device computes the loss.

    Raises:
        ModelError: if it cannot be loaded or does not fit the task.
    """
    section = recipe.model
    if blocks is None or section.load_in_4bit or is_gguf(model_source(recipe)):
        return load_model(recipe, classes=classes)
    base = load_part(
        base_folder(recipe), blocks=blocks, output=stays, labels=len(classes), classes=classes,
        dtype=section.dtype, device=section.device,
    )  # fmt: skip
    if base.tokenizer is not None and not classes:
        settle_end_(base.tokenizer, recipe.data.template)
        agree_(base.network, base.tokenizer)
    return base


def read_tokenizer(recipe: Recipe) -> Tokenizer:
    """Load the tokenizer of a recipe's model, as settled for its task; no weight is read.

    Raises:
        ModelError: if it cannot be found or read.
    """
    tokenizer = load_tokenizer(
        model_source(recipe), classifies=recipe.data.task != "causal-lm",
        revision=recipe.model.revision,
    )  # fmt: skip
    if recipe.data.task == "causal-lm":
        settle_end_(tokenizer, recipe.data.template)
    return tokenizer


def model_source(recipe: Recipe) -> str:
    """Return the folder, GGUF file or hub id of the model.

    Raises:
        ModelError: if it is a path and nothing is there.
    """
    source = recipe.model.source
    if source == EMBEDDED:
        return str(EMBEDDED_VISION if is_vision(recipe) else EMBEDDED_MODEL)
    place = Path(source).expanduser()
    if is_gguf(source) and not place.is_file():
        raise ModelError(f"there is no file {source!r}; set model.source to a GGUF file")
    if source.startswith((".", "/", "~")) and not (place.is_dir() or is_gguf(source)):
        raise ModelError(
            f"there is no folder {source!r}; set model.source to a folder, a GGUF file or a hub id"
        )
    return str(Path(source).expanduser()) if source.startswith("~") else source


def base_folder(recipe: Recipe) -> Path:
    """Return where this machine has a recipe's base.

    Raises:
        ModelError: if it has it neither as a folder nor from the hub.
    """
    source = model_source(recipe)
    if is_gguf(source):
        return Path(source).parent
    if Path(source).is_dir():
        return Path(source)
    found = try_to_load_from_cache(source, "config.json", revision=recipe.model.revision)
    if not isinstance(found, str):
        raise ModelError(
            f"there are no files of {source!r} on this machine; give model.source a folder"
        )
    return Path(found).parent


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


def longest_input(recipe: Recipe) -> int:
    """Return the most tokens of an input, from the recipe and the model's config alone.

    Raises:
        ModelError: if the config of a vision model cannot be found.
    """
    if not is_vision(recipe):
        return recipe.data.max_length
    return load_frame(model_source(recipe), revision=recipe.model.revision).tokens


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


def check_memory(problem: Problem, fleet: Fleet, *, may_cut: bool) -> None:
    """Refuse a fleet on which nothing can train.

    Args:
        problem: model and workload.
        fleet: the devices.
        may_cut: the method may leave blocks to the server.

    Raises:
        InfeasibleError: if neither the heaviest pruning nor, with a method that may cut, the first
            cut fits on any device.
    """
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


def _may_cut(recipe: Recipe) -> bool:
    return may_cut(recipe.method.name, recipe.method.settings)


def _first_cut_bytes(problem: Problem) -> float:
    """Return what a device needs that holds one block and leaves the server the rest."""
    if problem.shape.blocks < 2:
        return float("inf")
    one, zero = np.ones(1, np.int64), np.zeros(1)
    told = Assignments(
        device=np.zeros(1, np.int64), prune_heads=zero, prune_ffn=zero, rank=one * problem.workload.rank,
        share=np.ones(1), local_steps=one, cut=one, codec_index=np.zeros(1, np.int64),
    )  # fmt: skip
    return float(peak_memory(problem.shape, problem.workload, told).total[0])


def check_length(recipe: Recipe, base: BaseModel) -> None:
    """Refuse texts longer than the model has positions.

    Raises:
        RecipeError: if `data.max_length` exceeds them.
    """
    positions = positions_of(base.network.config)
    if positions and recipe.data.max_length > positions:
        raise RecipeError(
            f"data.max_length must be at most {positions}, the positions of this model, "
            f"got {recipe.data.max_length}"
        )


def positions_of(config: Config) -> int:
    """Return how many tokens a text model reads at most; 0 = its config does not say."""
    positions = int(getattr(config, "max_position_embeddings", 0) or 0)
    # the first two positions of a RoBERTa stand for padding
    return positions - 2 if config.model_type == "roberta" else positions


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
