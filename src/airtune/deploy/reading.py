"""What a device reads: its own data as a recipe says, or its share of the recipe's."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from airtune.data import DataSpec, load_federated, load_federated_images
from airtune.data.federated import DeviceData
from airtune.errors import DataError
from airtune.model.frame import load_frame
from airtune.model.images import Images
from airtune.model.source import Tokenizer
from airtune.recipe import Recipe
from airtune.run.load import is_vision, model_source

OF_RECIPE = "recipe"
"""`--data recipe`: the recipe's own data are dealt out, a device takes the share of its number."""


def read_data(
    recipe: Recipe,
    tokenizer: Tokenizer | None,
    source: str,
    *,
    labels: tuple[str, ...],
    device: int,
    devices: int,
) -> DeviceData:
    """Return what a device trains on and holds out.

    Args:
        recipe: how data are read.
        tokenizer: of the base, as settled; None for a model of images.
        source: the device's file or folder, or "recipe" for its share of the recipe's own data.
        labels: classes of the run.
        device: its number.
        devices: how many there are.

    Raises:
        DataError: if data are missing, malformed or too few.
    """
    spec, share, seed = replace(recipe.data, labels=labels), device, recipe.seed
    if source != OF_RECIPE:
        path = str(Path(source).expanduser())
        if not Path(path).exists():
            raise DataError(f"there are no data at {path}; give --data a file or folder")
        # the same rows stand in for a test set, which only the server may have
        spec = replace(
            spec,
            source=path,
            test=path,
            test_split=None,
            subset=None,
            revision=None,
            partition="iid",
        )
        share, devices = 0, 1
    if is_vision(recipe):
        frame = load_frame(model_source(recipe), revision=recipe.model.revision)
        return load_federated_images(spec, frame=frame, devices=devices, seed=seed).devices[share]
    if tokenizer is None:
        raise DataError(f"model {recipe.model.source} has no tokenizer, so texts cannot be read")
    return load_federated(spec, tokenizer=tokenizer, devices=devices, seed=seed).devices[share]


def check_paths(spec: DataSpec) -> None:
    """Refuse a recipe's own data that are a file of this machine which its owner has not offered.

    A recipe comes from a server, and `--data recipe` is no leave to read whatever it names.

    Raises:
        DataError: if they are outside the folder that this process was started in.
    """
    for path in (Path(value).expanduser() for value in (spec.source, spec.test) if value):
        if path.exists() and not path.resolve().is_relative_to(Path.cwd()):
            raise DataError(
                f"the recipe names data at {path}, outside {Path.cwd()}: start the agent in a folder "
                "above them, or name this device's own with --data"
            )


def describe_data(data: DeviceData) -> str:
    """Return a hash of what a device holds, as it is read."""
    found = hashlib.sha256()
    for part in (data.train, data.validation):
        arrays = (
            [part.pixels, part.targets]
            if isinstance(part, Images)
            else [*part.tokens, *part.targets, *part.segments]
        )
        for array in map(np.asarray, arrays):
            found.update(repr((array.dtype.str, array.shape)).encode())
            found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def describe_reader(recipe: Recipe, tokenizer: Tokenizer | None) -> str:
    """Return a hash of how a model reads: of its tokenizer, or of how it wants images."""
    if is_vision(recipe):
        text = repr(load_frame(model_source(recipe), revision=recipe.model.revision))
    elif tokenizer is None:
        text = ""
    else:
        rules = getattr(tokenizer, "backend_tokenizer", None)
        said = {"vocab": tokenizer.get_vocab()} if rules is None else json.loads(rules.to_str())
        # how long texts are cut and padded is set at every use and says nothing of the tokenizer
        kept = {key: value for key, value in said.items() if key not in ("truncation", "padding")}
        text = json.dumps([kept, tokenizer.chat_template], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
