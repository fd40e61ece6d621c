"""Images and labels in npz and npy files, whatever their arrays are called.

Nothing is unpickled.
"""

from __future__ import annotations

import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from airtune.data.decode import MOST_UNPACKED, check_regular
from airtune.data.folder import TESTS, TRAIN, apart, split_of, tests_among
from airtune.data.picture import Pixels
from airtune.data.table import Table, table_from_columns
from airtune.errors import DataError

Array: TypeAlias = NDArray[np.generic]

SUFFIXES = (".npz", ".npy")
CHANNELS = (1, 3, 4)
_USUAL: Mapping[str, tuple[str, ...]] = {
    "image": ("images", "image", "x"),
    "label": ("labels", "label", "y"),
}
"""Names that decide where several arrays have the shape."""
_BLOCK = 256
"""Rows that are looked at together; most arrays show in the first that they are not one-hot."""
_UNREADABLE = (
    OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
    RuntimeError,  # zipfile's, of encrypted members and unknown ways to pack
    MemoryError,  # of a header that claims more than any machine has
)  # fmt: skip
_JOINED = re.compile(r"^([xy])(?=train|test|val)", re.IGNORECASE)
"""`Xtrain`, without a sign between."""


def read_arrays(
    paths: Iterable[Path], columns: Mapping[str, str], test_split: str | None, *, source: Path
) -> tuple[Table, Iterator[Table]]:
    """Return images and labels of the training part, and of what can be the test, best first.

    The name of an array, or of one of several files, says which part it is of: `x_train`,
    `test_images`, `val.npz`. One that names none is for training, and so is all of a file that has
    one part. In each part the array of three or four dimensions holds the images, and the one of a
    number, a word or a one-hot row an image the labels, unless `columns` names them.

    Args:
        paths: npz and npy files.
        columns: which array is `image` and which `label`; others are told by their shapes.
        test_split: "test" or "validation"; None = either.
        source: named in errors.

    Raises:
        DataError: if a file is malformed or pickled, images and labels cannot be told or do not fit, or
            the test split is not there.
    """
    parts = _parts(paths, source)
    _check_named(parts[TRAIN], columns, source)
    tests = tests_among(parts, test_split, source)
    sources = {TRAIN: str(source)} | {split: f"{source} ({split})" for split in tests}
    pairs = {
        split: _pair(parts[split], columns, where, may_lack=split != TRAIN)
        for split, where in sources.items()
    }
    scale = _scale([images for images, _ in pairs.values()], source)
    image, label = (columns.get(role, role) for role in ("image", "label"))
    train, *others = (
        table_from_columns(
            {image: [scale(one) for one in images]}
            | ({} if labels is None else {label: labels.tolist()}),
            source=sources[split],
        )
        for split, (images, labels) in pairs.items()
    )
    return train, iter(others)


def _parts(paths: Iterable[Path], source: Path) -> dict[str, dict[str, Array]]:
    """Return the arrays of each split by their names; what names no split is for training."""
    parts: dict[str, dict[str, Array]] = {split: {} for split in (TRAIN, *TESTS)}
    for path in paths:
        for name, array in _held(path).items():
            said = Path(_spaced(name)) if path == source else Path(path.stem, _spaced(name))
            parts[split_of(said) or TRAIN][name] = array
    if source.is_file() and not parts[TRAIN]:  # one file of test data, named as such
        parts[TRAIN] = next((parts.pop(split) for split in TESTS if parts[split]), {})
    return parts


def _held(path: Path) -> dict[str, Array]:
    """Return the arrays of a file; one of npy is mapped, so that it cannot claim more than is there."""
    try:
        check_regular(path)
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {path.stem: found}
        with found:
            _check_unpacked(found.zip)
            members = {name: found[name] for name in found.files}
    except _UNREADABLE as error:
        raise DataError(
            f"{path} is not a valid {path.suffix[1:]} file of plain arrays: {error}"
        ) from error
    return {name: array for name, array in members.items() if isinstance(array, np.ndarray)}


def _check_unpacked(archive: zipfile.ZipFile) -> None:
    packed = [one for one in archive.infolist() if one.compress_type != zipfile.ZIP_STORED]
    size = sum(one.file_size for one in packed)
    if size > MOST_UNPACKED:
        raise ValueError(
            f"it unpacks to {size} bytes, at most {MOST_UNPACKED} are read; save it uncompressed "
            "(numpy.savez) if it should"
        )


def _check_named(held: Mapping[str, Array], columns: Mapping[str, str], source: Path) -> None:
    """Refuse a mapped name that no array for training has."""
    for name in columns.values():
        if name not in held:
            raise DataError(
                f"{source} has no array {name!r} for training; it has {_described(held)}; map it with "
                "`data.columns`"
            )


def _described(held: Mapping[str, Array]) -> str:
    return ", ".join(f"{n} {a.dtype} {a.shape}" for n, a in held.items()) or "none"


def _pair(
    held: Mapping[str, Array], columns: Mapping[str, str], where: str, *, may_lack: bool
) -> tuple[Array, Array | None]:
    """Return images, (images, height, width[, channels]), and labels, (images,), of one part.

    None stands for labels that are not there, where they may lack.
    """
    images = _chosen(held, "image", columns, where)
    if may_lack and not any(map(_may_be_labels, held.values())):
        return channels_last(images), None
    alike = {name: array for name, array in held.items() if array.shape[:1] == images.shape[:1]}
    labels = _chosen(
        alike if any(map(_may_be_labels, alike.values())) else held, "label", columns, where
    )
    if len(images) != len(labels) or not len(images):
        raise DataError(
            f"{where} must have as many labels as images, and one at least, got {len(images)} images and "
            f"{len(labels)} labels"
        )
    return channels_last(images), _one_a_row(labels)


def _chosen(held: Mapping[str, Array], role: str, columns: Mapping[str, str], where: str) -> Array:
    """Return the array that is mapped, else the one that its shape speaks for.

    Raises:
        DataError: if there is none, or several.
    """
    fits, what = _WANTED[role]
    names = _named(held, columns.get(role)) or [name for name in held if fits(held[name])]
    usual = [name for name in names if _bare(name) in _USUAL[role]]
    names = usual if len(names) > 1 and usual else names
    if len(names) == 1 and fits(held[names[0]]):
        return held[names[0]]
    if len(names) > 1:
        raise DataError(
            f"{where} has several arrays that may be the {role}s, {', '.join(names)}: name one, "
            f"`data.columns: {{{role}: {names[0]}}}`"
        )
    raise DataError(f"{where} must have an array of {role}s, {what}; it has {_described(held)}")


def _named(held: Mapping[str, Array], name: str | None) -> list[str]:
    """Return the array that is mapped, in another part the one that is called so there."""
    if name is None:
        return []
    return [name] if name in held else [one for one in held if _bare(one) == _bare(name)]


def _spaced(name: str) -> str:
    """Return an array's name with a sign before the word that says its part."""
    return _JOINED.sub(r"\1_", name)


def _bare(name: str) -> str:
    """Return an array's name without the word that says its part.

    >>> _bare("x_train"), _bare("test_images"), _bare("trainX"), _bare("arr_0")
    ('x', 'images', 'x', 'arr_0')
    """
    words = re.split(r"[\W_]+", apart(_spaced(name)))
    return "_".join(word for word in words if split_of(Path(word)) is None)


def _may_be_images(array: Array) -> bool:
    return array.ndim in (3, 4) and array.dtype.kind in "biuf" and 0 not in array.shape[1:]


def _may_be_labels(array: Array) -> bool:
    return array.dtype.kind in "biufUS" and (
        array.ndim == 1 or (array.ndim == 2 and (array.shape[1] == 1 or _is_one_hot(array)))
    )


def _is_one_hot(array: Array) -> bool:
    if array.dtype.kind not in "biuf" or array.shape[1] < 2:
        return False
    blocks = (array[at : at + _BLOCK] for at in range(0, len(array), _BLOCK))
    return all(
        np.array_equal((rows == 1).sum(1) * (rows != 0).sum(1), np.ones(len(rows)))
        for rows in blocks
    )


def _one_a_row(labels: Array) -> Array:
    if labels.ndim == 2:
        labels = labels[:, 0] if labels.shape[1] == 1 else labels.argmax(1)
    return labels.astype(np.str_) if labels.dtype.kind == "S" else labels


def channels_last(images: Array) -> Array:
    """Return images of (images, height, width[, channels]), whose channels may have come first."""
    if images.ndim == 4 and images.shape[1] in CHANNELS and images.shape[3] not in CHANNELS:
        return images.transpose(0, 2, 3, 1)
    return images


def _scale(parts: Sequence[Array], source: Path) -> Callable[[Array], Pixels]:
    """Return what turns an image of a source into numbers from 0 to 255, on one scale for all.

    Whole numbers are of 8 bits, or of 16 where one is above 255; fractions go up to 1 or, where one is
    above 1, to 255.
    """
    if any(part.ndim == 4 and part.shape[3] not in CHANNELS for part in parts):
        shapes = ", ".join(str(part.shape) for part in parts)
        raise DataError(f"{source}: images must have 1, 3 or 4 channels, got arrays of {shapes}")
    if all(part.dtype == np.uint8 for part in parts):
        return lambda image: image.astype(np.uint8, copy=False)
    low = min(float(part.min()) for part in parts)
    high = max(float(part.max()) for part in parts)
    kinds = {part.dtype.kind for part in parts}
    most = (1.0, 255.0) if kinds & {"b", "f"} else (255.0, 65535.0)
    top = next((level for level in most if high <= level), None)
    if top is None or not low >= 0.0:
        raise DataError(
            f"{source}: images must hold whole numbers from 0 to 255 or 65535, or fractions from 0 to 1 "
            f"or 255, got {low:g} to {high:g}; scale them back to one of these"
        )
    return lambda image: np.rint(image.astype(np.float64) * (255.0 / top)).astype(np.uint8)


_WANTED: Mapping[str, tuple[Callable[[Array], bool], str]] = {
    "image": (_may_be_images, "(images, height, width[, channels])"),
    "label": (_may_be_labels, "a whole number, a word or a one-hot row an image"),
}
"""Role -> which arrays may have it, and how that is told."""
