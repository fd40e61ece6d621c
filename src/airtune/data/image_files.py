"""Reading labelled images: folders of classes, npz and parquet files, CIFAR's binary files, the hub.

Nothing is unpickled. Pillow decodes png, jpeg and the like and is asked for only where such files
are read.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray

from airtune.data.columns import resolve_columns
from airtune.data.files import read_file
from airtune.data.folder import TRAIN, read_folder, split_of, visible, visible_files
from airtune.data.hub import is_saved, read_hub, read_saved
from airtune.data.labels import label_keys
from airtune.data.picture import Pixels, upright_pixels
from airtune.data.picture import decode_picture as _decode
from airtune.data.spec import DataSpec
from airtune.data.table import Table
from airtune.errors import DataError
from airtune.model.frame import ImageFormat
from airtune.plan import Ints

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff",
    ".avif", ".heic", ".heif",
)  # fmt: skip
"""What a picture's name ends in; one that Pillow cannot read is refused, and none is passed over."""
_CIFAR: Mapping[int, int] = {1 + 3072: 1, 2 + 3072: 2}
"""Bytes of a record -> label bytes before the pixels; the last of them is the class."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Images as the model wants them, with their labels as text."""

    pixels: Pixels
    """(images, channels, size, size)."""
    labels: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Ints) -> Pictures:
        """Return the chosen images in the given order."""
        return Pictures(
            self.pixels[rows], tuple(self.labels[row] for row in rows.tolist()), self.source
        )


def read_pictures(spec: DataSpec, frame: ImageFormat) -> tuple[Pictures, Pictures | None]:
    """Return training and test images; None where the source brings no test set of its own.

    Raises:
        DataError: if anything is missing or malformed; the file is named.
        MissingExtraError: if pictures have to be decoded and Pillow is not installed.
    """
    train, test = _read(spec.source, spec, frame)
    if spec.test is not None:
        other, apart = _read(spec.test, spec, frame)
        test = other if apart is None else apart
    return train, test


def _read(source: str, spec: DataSpec, frame: ImageFormat) -> tuple[Pictures, Pictures | None]:
    path = Path(source).expanduser()
    if path.is_dir() and not is_saved(path):
        return _read_folder(path, spec, frame)
    if path.is_file():
        if path.suffix.lower() == ".npz":
            return _read_npz(path, frame)
        if path.suffix.lower() == ".bin":
            return _cifar(path, frame), None
        return _from_table(read_file(path), spec, frame), None
    if not path.is_dir() and (path.suffix or path.is_absolute()):
        raise DataError(f"no such file: {path.absolute()}; check `data.source` and `data.test`")
    return _read_splits(path, source, spec, frame)


def _read_splits(
    path: Path, source: str, spec: DataSpec, frame: ImageFormat
) -> tuple[Pictures, Pictures | None]:
    names = [spec.split] + ([spec.test_split] if spec.test_split else [])
    tables = [
        read_saved(path, split=name)
        if path.is_dir()
        else read_hub(source, split=name, subset=spec.subset, revision=spec.revision)
        for name in names
    ]
    found = [_from_table(table, spec, frame) for table in tables]
    return found[0], found[1] if len(found) > 1 else None


def _read_folder(
    folder: Path, spec: DataSpec, frame: ImageFormat
) -> tuple[Pictures, Pictures | None]:
    """Read CIFAR's binary files, or classes as sub-folders, below train and test or at the top."""
    binary = sorted(folder.glob("*.bin"))
    if binary:
        train = [path for path in binary if "test" not in path.stem]
        test = [path for path in binary if "test" in path.stem]
        if not train:
            raise DataError(f"{folder} holds no training file; data_batch_1.bin or train.bin")
        parts = [_joined([_cifar(path, frame) for path in some]) for some in (train, test) if some]
        return parts[0], parts[1] if len(parts) > 1 else None
    if not any(path.suffix.lower() in SUFFIXES for path in visible_files(folder)):
        return _read_tables(folder, spec, frame)
    folder = _unwrapped(folder)
    inner = {split_of(Path(path.name)): path for path in visible(folder) if _holds_classes(path)}
    if TRAIN not in inner:
        return _read_classes(folder, frame), None
    apart = inner.get("test", inner.get("validation"))
    test_set = None if apart is None else _read_classes(apart, frame)
    return _read_classes(inner[TRAIN], frame), test_set


def _holds_classes(folder: Path) -> bool:
    """Say whether a folder holds folders, as one of a split does; one of a class holds pictures."""
    return folder.is_dir() and any(path.is_dir() for path in visible(folder))


def _unwrapped(folder: Path) -> Path:
    """Return the folder of the classes, where others hold nothing but it, as archives do."""
    while len(held := [path for path in visible(folder) if path.is_dir()]) == 1:
        if not _holds_classes(held[0]):
            break
        folder = held[0]
    return folder


def _read_tables(
    folder: Path, spec: DataSpec, frame: ImageFormat
) -> tuple[Pictures, Pictures | None]:
    """Read a clone of a hub's data set, whose parquet files hold the pictures."""
    try:
        tables = read_folder(folder, subset=spec.subset, test_split=spec.test_split)
    except DataError as error:
        raise DataError(
            f"{folder} holds no images; one sub-folder a class with {', '.join(SUFFIXES)} is "
            "needed, or a npz, parquet or CIFAR .bin file"
        ) from error
    train, test = tables
    return _from_table(train, spec, frame), None if test is None else _from_table(test, spec, frame)


def _read_classes(folder: Path, frame: ImageFormat) -> Pictures:
    """Read a folder with one sub-folder a class."""
    files = [
        (path, kind.name)
        for kind in visible(folder)
        if kind.is_dir()
        for path in visible_files(kind)
        if path.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise DataError(
            f"{folder} holds no images in sub-folders; one sub-folder a class with "
            f"{', '.join(SUFFIXES)} is needed"
        )
    pixels = [fit(_decode(_bytes_of(path), str(path)), frame) for path, _ in files]
    return Pictures(np.stack(pixels), tuple(name for _, name in files), str(folder))


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:  # a link to a file that is gone
        raise DataError(f"{path} cannot be read: {error.strerror}; mend or remove it") from error


def _read_npz(path: Path, frame: ImageFormat) -> tuple[Pictures, Pictures | None]:
    """Read arrays `images` and `labels`, or `x_train`, `y_train` and perhaps `x_test`, `y_test`."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a valid npz file of plain arrays: {error}") from error
    pairs = {part: _pair(held, part) for part in ("train", "test")}
    if pairs["train"] is None:
        raise DataError(
            f"{path} must hold images and labels, or x_train and y_train, got "
            f"{', '.join(held) or 'nothing'}"
        )
    found = [_from_arrays(*pair, source=str(path), frame=frame) for pair in pairs.values() if pair]
    return found[0], found[1] if len(found) > 1 else None


def _pair(
    held: Mapping[str, NDArray[np.generic]], part: str
) -> tuple[NDArray[np.generic], NDArray[np.generic]] | None:
    plain = [("images", "labels")] if part == "train" else []
    for image, label in [*plain, (f"x_{part}", f"y_{part}"), (f"{part}_images", f"{part}_labels")]:
        if image in held and label in held:
            return held[image], held[label]
    return None


def _from_arrays(
    images: NDArray[np.generic], labels: NDArray[np.generic], *, source: str, frame: ImageFormat
) -> Pictures:
    labels = labels.reshape(len(labels), -1)[:, 0] if labels.size == len(labels) else labels
    whole = np.issubdtype(labels.dtype, np.integer) or labels.dtype.kind == "U"
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or labels.ndim != 1 or not whole:
        raise DataError(
            f"{source}: images must be uint8 of (images, height, width[, channels]) and labels "
            f"whole numbers or text, got {images.dtype} {images.shape} and {labels.dtype} "
            f"{labels.shape}"
        )
    if len(images) != len(labels) or not len(images):
        raise DataError(f"{source}: {len(images)} images and {len(labels)} labels must agree")
    pixels = images.astype(np.uint8)
    if pixels.ndim == 4 and pixels.shape[1] in (1, 3, 4) and pixels.shape[3] not in (1, 3, 4):
        pixels = pixels.transpose(0, 2, 3, 1)
    return Pictures(
        np.stack([fit(image, frame) for image in pixels]),
        tuple(str(label) for label in labels.tolist()),
        source,
    )


def _cifar(path: Path, frame: ImageFormat) -> Pictures:
    """Read the binary version of CIFAR-10 or CIFAR-100: label bytes, then 3 x 32 x 32 values."""
    data = np.frombuffer(path.read_bytes(), np.uint8)
    # a size may be a multiple of both records; the folder's CIFAR-100 files say train and test
    order = (3074, 3073) if path.stem in ("train", "test") else (3073, 3074)
    size = next((size for size in order if data.size and data.size % size == 0), None)
    if size is None:
        raise DataError(
            f"{path} is {data.size} bytes, no whole number of CIFAR records of 3073 or 3074 bytes"
        )
    rows = data.reshape(-1, size)
    pixels = rows[:, _CIFAR[size] :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = rows[:, _CIFAR[size] - 1].tolist()
    return Pictures(
        np.stack([fit(image, frame) for image in pixels]), tuple(map(str, labels)), str(path)
    )


def _from_table(table: Table, spec: DataSpec, frame: ImageFormat) -> Pictures:
    """Read a column of encoded pictures, as `datasets` writes them to parquet."""
    columns = resolve_columns(spec, table)
    image, name = columns["image"], columns.get("label_name", columns["label"])
    labels = label_keys(table, name)
    table.refuse(name, [label is None for label in labels], "must be text or a whole number")
    pixels = [
        fit(_picture(value, table.place(row)), frame)
        for row, value in enumerate(table.column(image))
    ]
    return Pictures(np.stack(pixels), tuple(map(str, labels)), table.source)


def _picture(value: object, where: str) -> Pixels:
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if isinstance(value, bytes):
        return _decode(value, where)
    if hasattr(value, "getexif"):  # a picture that `datasets` has opened
        return upright_pixels(cast("Image", value), where)
    raise DataError(f"{where}: an image must be encoded bytes, got {type(value).__name__}")


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


def _joined(parts: Sequence[Pictures]) -> Pictures:
    return Pictures(
        np.concatenate([part.pixels for part in parts]),
        tuple(label for part in parts for label in part.labels),
        re.sub(r"[^/]+$", "", parts[0].source) or parts[0].source,
    )
