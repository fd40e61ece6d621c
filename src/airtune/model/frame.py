"""How a vision model wants its images: their size, and what is done to the pixel values.

It is read from `preprocessor_config.json` beside the weights, as transformers writes it, so that
images are prepared here as they are wherever the tuned model is used afterwards.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from transformers.utils import cached_file

from airtune.errors import ModelError
from airtune.model.source import load_config, reading

PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """What every image becomes before a model reads it."""

    size: int
    """Height and width in pixels."""
    patch: int
    """Height and width of a patch in pixels."""
    channels: int = 3
    mean: tuple[float, ...] = (0.5,)
    """Subtracted from values in [0, 1], one for all channels or one each ..."""
    deviation: tuple[float, ...] = (0.5,)
    """... which are then divided by this."""

    @property
    def tokens(self) -> int:
        """Patches of an image and its class token.

        >>> ImageFormat(224, 16).tokens
        197
        """
        return (self.size // self.patch) ** 2 + 1

    def as_preprocessor(self) -> str:
        """Return it as transformers' image processors read it."""
        return (
            json.dumps(
                {
                    "image_processor_type": "ViTImageProcessor",
                    "do_resize": True,
                    "size": {"height": self.size, "width": self.size},
                    "do_rescale": True,
                    "rescale_factor": 1 / 255,
                    "do_normalize": True,
                    "image_mean": _each(self.mean, self.channels),
                    "image_std": _each(self.deviation, self.channels),
                },
                indent=2,
            )
            + "\n"
        )


def load_frame(source: str | Path, *, revision: str | None = None) -> ImageFormat:
    """Return what a vision model wants, from its config and preprocessor; no weight is read.

    A model without a preprocessor gets ViT's own mean and deviation, 0.5.

    Raises:
        ModelError: if it cannot be found or read, or reads no images.
    """
    with reading(source):
        config = load_config(source, revision)
        found = cached_file(
            str(source),
            PREPROCESSOR,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
        )
        said = {} if found is None else json.loads(Path(found).read_text(encoding="utf-8"))
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if not (isinstance(size, int) and isinstance(patch, int)):
        raise ModelError(
            f"a {config.model_type} model reads no images, or not square ones; "
            "use a vit, or a task of texts"
        )
    channels = int(getattr(config, "num_channels", 3))
    return ImageFormat(
        size,
        patch,
        channels,
        mean=_values(said, "image_mean", channels, source),
        deviation=_values(said, "image_std", channels, source),
    )


def _values(
    said: dict[str, object], key: str, channels: int, source: str | Path
) -> tuple[float, ...]:
    found = said.get(key, 0.5)
    given = found if isinstance(found, list) else [found]
    values = [float(value) for value in given if isinstance(value, int | float)]
    fits = len(values) == len(given) and len(values) in (1, channels)
    if not fits or (key == "image_std" and min(values) <= 0):
        raise ModelError(
            f"{key} in {PREPROCESSOR} of {str(source)!r} must be one number or one for each of "
            f"{channels} channels, got {found!r}"
        )
    return tuple(values)


def _each(values: tuple[float, ...], channels: int) -> list[float]:
    return list(values) if len(values) == channels else list(values) * channels
