"""Model, tokenizer, data and fleet of a recipe, as they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from airtune.data import (
    EMBEDDED_MODEL,
    EMBEDDED_VISION,
    FederatedData,
    load_federated,
    load_federated_images,
)
from airtune.data.exchange import settle_end_
from airtune.errors import ModelError, RecipeError
from airtune.fleet import Fleet
from airtune.model.admission import agree_, settle_length_
from airtune.model.base import BaseModel, load_base, load_class_names
from airtune.model.families import Config
from airtune.model.frame import load_frame
from airtune.model.gguf.source import is_gguf
from airtune.model.images import load_image_base
from airtune.model.part import load_part
from airtune.model.source import Tokenizer, load_config, load_tokenizer
from airtune.recipe import EMBEDDED, Recipe, fleet_of
from airtune.run.folders import resolved


@dataclass(frozen=True, slots=True)
class Assets:
    """What all methods of a comparison share at one seed."""

    base: BaseModel
    data: FederatedData
    fleet: Fleet


def load_assets(recipe: Recipe) -> Assets:
    """Load model, data and fleet of a recipe, which are known by their full paths.

    Raises:
        DataError: if the data are missing, malformed or too few.
        ModelError: if the model cannot be loaded.
        FleetError: if the fleet is wrong.
        RecipeError: if texts may be longer than the model reads.
    """
    recipe = resolved(recipe)
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
            recipe.data,
            tokenizer=tokenizer,
            devices=count,
            seed=recipe.seed,
            known=known,
            vocabulary=int(load_config(source, revision).vocab_size),
        )
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
    torch_device = section.device if device is None else device
    packed = section.load_in_4bit and device is None
    if not is_vision(recipe):
        base = load_base(
            model_source(recipe),
            labels=len(classes),
            classes=classes,
            dtype=section.dtype,
            device=torch_device,
            load_in_4bit=packed,
            revision=section.revision,
            allow_pickle=section.allow_pickle,
        )
        return _settled(base, recipe)
    return load_image_base(
        model_source(recipe),
        labels=len(classes),
        classes=classes,
        dtype=section.dtype,
        device=torch_device,
        revision=section.revision,
        allow_pickle=section.allow_pickle,
    )


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
        base_folder(recipe),
        blocks=blocks,
        output=stays,
        labels=len(classes),
        classes=classes,
        dtype=section.dtype,
        device=section.device,
    )
    return _settled(base, recipe)


def _settled(base: BaseModel, recipe: Recipe) -> BaseModel:
    """Agree on how long a text is and, where the model writes texts, on the marks of a conversation."""
    if base.tokenizer is not None:
        settle_length_(base.tokenizer, recipe.data.max_length)
    if base.tokenizer is not None and recipe.data.task == "causal-lm":
        settle_end_(base.tokenizer, recipe.data.template)
        agree_(base.network, base.tokenizer)
    return base


def read_tokenizer(recipe: Recipe) -> Tokenizer:
    """Load the tokenizer of a recipe's model, as settled for its task; no weight is read.

    Raises:
        ModelError: if it cannot be found or read.
    """
    tokenizer = load_tokenizer(
        model_source(recipe),
        classifies=recipe.data.task != "causal-lm",
        revision=recipe.model.revision,
    )
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
    path = Path(source).expanduser()
    if is_gguf(source) and not path.is_file():
        raise ModelError(f"there is no file {source!r}; set model.source to a GGUF file")
    if source.startswith((".", "/", "~")) and not (path.is_dir() or is_gguf(source)):
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


def longest_input(recipe: Recipe) -> int:
    """Return the most tokens of an input, from the recipe and the model's config alone.

    Raises:
        ModelError: if the config of a vision model cannot be found.
    """
    if not is_vision(recipe):
        return recipe.data.max_length
    return load_frame(model_source(recipe), revision=recipe.model.revision).tokens


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
