"""From what a column of images holds to the pixels that a model reads."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from airtune.data.arrays import CHANNELS, Array, channels_last
from airtune.data.decode import stored_bytes
from airtune.data.picture import Pixels
from airtune.data.picture import decode_picture as _decode
from airtune.data.table import Table
from airtune.errors import DataError
from airtune.model.frame import ImageFormat

_CHANNELS = ((), *((count,) for count in CHANNELS))
"""What may stand behind height and width."""


def fitted_pixels(
    table: Table, column: str, frame: ImageFormat, folders: Sequence[Path] = ()
) -> Pixels:
    """Return a column of images as the model reads them, shape (rows, channels, size, size).

    A value is an array of pixels, lists of lists of them, an encoded picture, or text: a picture in
    base64, or the path of one from the folder of the file that says it.

    Args:
        table: rows.
        column: of images.
        frame: how the model wants them.
        folders: whose files name only pictures that lie in the same one of them.

    Raises:
        DataError: if one is no image, or lies elsewhere; file and row are named.
        MissingExtraError: if pictures have to be decoded and Pillow is not installed.
    """
    values = table.column(column)
    found = np.empty((len(values), frame.channels, frame.size, frame.size), np.uint8)
    for row, value in enumerate(values):
        found[row] = fit(_pixels(value, table.place(row), folders), frame)
    return found


def _pixels(value: object, where: str, folders: Sequence[Path]) -> Pixels:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, Mapping):  # as `datasets` holds pictures
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and "://" in value:
        raise DataError(
            f"{where}: pictures are not fetched from {value:.80}; store them, and name their files"
        )
    if isinstance(value, str):
        value = _of_text(value, where, folders)
    if isinstance(value, Path):
        return _decode(_bytes_of(value, where), str(value))
    if isinstance(value, bytes):
        return _decode(value, where)
    if isinstance(value, list):
        return _from_lists(value, where)
    raise DataError(
        f"{where}: an image must be an encoded picture or the path of one, got {type(value).__name__}"
    )


def _of_text(text: str, where: str, folders: Sequence[Path]) -> bytes | Path:
    """Return the path that text is where a file is there, else what it says in base64, else the path."""
    name = text.strip()
    is_there = os.path.isfile(Path(where).parent / name)  # takes text that is too long for a name
    return (None if is_there else _from_base64(text)) or _named(name, where, folders)


def _named(name: str, where: str, folders: Sequence[Path]) -> Path:
    """Return the path that a file names, from its folder on.

    Raises:
        DataError: if the file is in one of the folders and the path leads out of that.
    """
    path = Path(where).parent / name
    holder = next((one for one in folders if _is_in(Path(where), one)), None)
    if holder is not None and not _is_in(path, holder):
        raise DataError(
            f"{where} names a picture outside {holder}, {name:.80}; files of a folder may name only "
            "pictures in it: put it there, or name the file itself as `data.source`"
        )
    return path


def _is_in(path: Path, folder: Path) -> bool:
    """Say whether a path, as it is written, leads into a folder; links are not looked at."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


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
    except ValueError:
        return None


def _bytes_of(path: Path, where: str) -> bytes:
    try:
        return stored_bytes(path)
    except OSError as error:  # a link to a file that is gone, for instance
        raise DataError(
            f"{path!s:.200} cannot be read: {error.strerror}; repair or remove it ({where})"
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
