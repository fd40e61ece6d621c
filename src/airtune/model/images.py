"""Images for a vision transformer, in the batch that everything else already takes.

A `Batch` of images holds the pixel values (batch, channels, height, width) where a text's token ids
are, and an attention mask of ones over the patches and the class token. The networks made here read
them under that name, so loss, importance, adapters, slices and cuts need not know what an image is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoModelForImageClassification, PreTrainedModel

from airtune.errors import DataError, ModelError
from airtune.model.base import DTYPES, BaseModel, base_of, loading, torch_device_of
from airtune.model.batch import Batch, Sequences
from airtune.model.classes import name_classes_
from airtune.model.families import Config, family_of
from airtune.model.frame import load_frame
from airtune.model.refusals import check_finite, refuse_pickled
from airtune.model.source import load_config, reading
from airtune.plan import Ints


@dataclass(frozen=True, slots=True)
class Images:
    """Labelled images of one device or one test set."""

    pixels: NDArray[np.uint8]
    """(images, channels, height, width)."""
    targets: Ints
    """One class per image."""
    mean: tuple[float, ...] = (0.5,)
    """Subtracted from pixel values in [0, 1], one for all channels or one each ..."""
    deviation: tuple[float, ...] = (0.5,)
    """... which are then divided by this; ViT's own preprocessing by default."""

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: Sequence[int] | Ints) -> Images:
        """Return the chosen images in the given order."""
        chosen = np.asarray(rows, np.int64)
        return replace(self, pixels=self.pixels[chosen], targets=self.targets[chosen])


Examples: TypeAlias = Sequences | Images
"""What a device trains on."""


def join_images(parts: Sequence[Images]) -> Images:
    """Return the images of several devices as one, in the order given; at least one part."""
    return replace(
        parts[0],
        pixels=np.concatenate([part.pixels for part in parts]),
        targets=np.concatenate([part.targets for part in parts]),
    )


def collate_images(
    images: Images,
    indices: Sequence[int] | Ints,
    *,
    tokens: int,
    device: str | torch.device = "cpu",
) -> Batch:
    """Return the chosen images as a batch.

    Args:
        images: Where from.
        indices: Which.
        tokens: Patches of an image and its class token, see `image_tokens`.
        device: Where to.

    Raises:
        DataError: if no image is chosen.
    """
    chosen = np.asarray(indices, np.int64)
    if len(chosen) == 0:
        raise DataError("a batch needs at least one image, got none")
    pixels = torch.from_numpy(images.pixels[chosen]).to(device).float() / 255.0
    labels = torch.from_numpy(images.targets[chosen].astype(np.int64)).to(device)
    mask = torch.ones((len(chosen), tokens), dtype=torch.int64, device=device)
    mean, deviation = (
        pixels.new_tensor(values)[:, None, None] for values in (images.mean, images.deviation)
    )
    return Batch((pixels - mean) / deviation, mask, labels)


def image_tokens(config: Config) -> int:
    """Return how many tokens an image is: its patches and the class token.

    >>> from transformers import ViTConfig
    >>> image_tokens(ViTConfig())
    197
    """
    return (int(config.image_size) // int(config.patch_size)) ** 2 + 1


def load_image_base(
    source: str | Path,
    *,
    labels: int,
    classes: Sequence[str] = (),
    dtype: str = "float32",
    device: str = "auto",
    revision: str | None = None,
    allow_pickle: bool = False,
) -> BaseModel:
    """Load a vision transformer as a base model; a head of another size is drawn anew.

    Raises:
        ModelError: if it cannot be found or read, is no vision transformer, is not finite or pickled
            and must not be, or the dtype is unknown.
    """
    if not allow_pickle:
        refuse_pickled(source)
    if dtype not in DTYPES:
        raise ModelError(
            f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}; set model.dtype"
        )
    config = load_config(source, revision)
    if family_of(config).name != "vit":
        raise ModelError(
            f"{str(source)!r} is a {config.model_type} model and reads no images; use a vit"
        )
    with reading(source), loading():
        network = AutoModelForImageClassification.from_pretrained(
            source,
            revision=revision,
            dtype=DTYPES[dtype],
            num_labels=labels,
            ignore_mismatched_sizes=True,
            use_safetensors=None if allow_pickle else True,
            trust_remote_code=False,
        )
    if classes:
        name_classes_(network, classes)
    check_finite(network, str(source))
    frame = load_frame(source, revision=revision)
    return replace(
        image_base_of(network.to(torch_device_of(device)), source=str(source)), frame=frame
    )


def image_base_of(network: PreTrainedModel, *, source: str = "memory") -> BaseModel:
    """Freeze a vision transformer and make it read batches as every base does; changes it.

    Raises:
        ModelError: if it is no vision transformer.
    """
    read_batches_(network)
    return base_of(network, source=source)


def read_batches_(network: PreTrainedModel) -> None:
    """Make a vision transformer read pixel values under the name of token ids; changes it.

    Raises:
        ModelError: if it is no vision transformer.
    """
    family = family_of(network.config)
    if family.name != "vit":
        raise ModelError(f"a {family.name} model reads no images; use a vit")
    backbone: nn.Module = network.get_submodule(family.backbone)
    backbone.register_forward_pre_hook(_as_pixels, with_kwargs=True)


def _as_pixels(
    module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Hand the ids of a batch to a vision transformer as the pixel values they are."""
    if "input_ids" not in kwargs:
        return args, kwargs
    rest = {name: value for name, value in kwargs.items() if name not in ("input_ids", "use_cache")}
    return (), rest | {"pixel_values": kwargs["input_ids"]}
