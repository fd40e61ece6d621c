"""From what a column of images holds to the pixels that a model reads."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from airtune.data.arrays import CHANNELS, Array, channels_last
from airtune.data.picture import Pixels
from airtune.data.picture import decode_picture as _decode
from airtune.data.table import Table
from airtune.errors import DataError
from airtune.model.frame import ImageFormat

_CHANNELS = ((), *((count,) for count in CHANNELS))
"""What may stand behind height and width."""


def fitted_pixels(table: Table, column: str, frame: ImageFormat) -> Pixels:
    """Return a column of images as the model reads them, shape (rows, channels, size, size).

    A value is an array of pixels, also as lists of lists, an encoded picture, in base64 where it is text, or the path of one,
    which begins at the folder of the file that says it.

    Raises:
        DataError: if one is no image; file and row are named.
        MissingExtraError: if pictures have to be decoded and Pillow is not installed.
    """
    return np.stack(
        [fit(_pixels(value, table, row), frame) for row, value in enumerate(table.column(column))]
    )


def _pixels(value: object, table: Table, row: int) -> Pixels:
    if isinstance(value, np.ndarray):
        return value
    where = table.place(row)
    if isinstance(value, Mapping):  # as `datasets` holds pictures
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and "://" in value:
        raise DataError(
            f"{where}: pictures are not fetched from {value:.80}; store them, and name their files"
        )
    if isinstance(value, str):
        value = _from_base64(value) or Path(value.strip())
    if isinstance(value, Path):
        path = Path(where).parent / value
        return _decode(_bytes_of(path, where), str(path))
    if isinstance(value, bytes):
        return _decode(value, where)
    if isinstance(value, list):
        return _from_lists(value, where)
    raise DataError(
        f"{where}: an image must be an encoded picture or the path of one, got {type(value).__name__}"
    )


def _from_lists(value: list[object], where: str) -> Pixels:
    try:
        found = np.asarray(value)
    except ValueError:  # rows of unlike lengths
        found = np.empty(0)
    is_whole = found.dtype.kind in "iu" and found.size and found.min() >= 0 and found.max() <= 255
    image: Array = channels_last(found[None])[0]
    if not is_whole or image.ndim not in (2, 3) or image.shape[2:] not in _CHANNELS:
        raise DataError(
            f"{where}: an image in lists must be lists of whole numbers from 0 to 255, height by width, "
            "with 1, 3 or 4 channels last or first"
        )
    return image.astype(np.uint8)


def _from_base64(text: str) -> bytes | None:
    """Return what base64 says, after `data:image/png;base64,` or not; None where text is none."""
    said = text.rpartition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(said, validate=True)
    except ValueError:  # a path has a full stop, which base64 has not
        return None


def _bytes_of(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:  # a link to a file that is gone, for instance
        raise DataError(
            f"{path!s:.200} cannot be read: {error.strerror}; mend or remove it ({where})"
        ) from error


def fit(image: Pixels, frame: ImageFormat) -> Pixels:
    """Return an image (height, width[, channels]) as (channels, size, size).

    Colours are averaged to grey, or grey is repeated, where the model's channels differ; other sizes
    are resampled with antialiasing, height and width each by itself.
    """
    coloured = image[:, :, None] if image.ndim == 2 else image[:, :, :3]
    if coloured.shape[2] != frame.channels:
        grey = coloured.mean(2, keepdims=True)
        coloured = np.repeat(grey.round().astype(np.uint8), frame.channels, axis=2)
    pixels = np.ascontiguousarray(coloured.transpose(2, 0, 1))
    if pixels.shape[1:] == (frame.size, frame.size):
        return pixels
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(pixels).float()[None],
        size=(frame.size, frame.size),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )
    return np.asarray(resized[0].round().clamp(0, 255).byte().numpy())
