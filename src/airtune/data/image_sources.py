"""Finding labelled images: folders of classes, CIFAR's binary files, npz and npy files.

What they hold is decoded later (`airtune.data.image_files`), so that pictures that a limit leaves out are
not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from airtune.data.arrays import SUFFIXES as ARRAYS
from airtune.data.arrays import read_arrays
from airtune.data.class_folders import read_class_folders
from airtune.data.decode import read_bytes
from airtune.data.folder import TESTS, TRAIN, is_index, split_of, tests_among, visible_files
from airtune.data.picture import PICTURES
from airtune.data.table import Table, join_tables, table_from_rows
from airtune.errors import DataError

_CIFAR: Mapping[int, int] = {1 + 3072: 1, 2 + 3072: 2}
"""Bytes of a record -> label bytes before the pixels; the last of them is the class."""


def holds_pictures(path: Path) -> bool:
    """Say whether a file or folder is one of those that `read_pictures` reads."""
    return any(_kinds(path))


def read_pictures(
    path: Path, columns: Mapping[str, str], test_split: str | None
) -> tuple[Table, Iterator[Table]]:
    """Return the images of a file or folder with their labels, and what can be the test, best first.

    Args:
        path: a folder of classes, perhaps below folders of splits; a npz file, or a folder of npz or
            npy files; one of CIFAR's binary files, or a folder of them.
        columns: which arrays are `image` and `label`.
        test_split: "test" or "validation"; None = either.

    Raises:
        DataError: if anything is missing or malformed; the file is named.
    """
    pictures, packed, binary = _kinds(path)
    if pictures:
        return read_class_folders(path, "image", PICTURES, Path.absolute, test_split)
    if packed:
        return read_arrays(packed, columns, test_split, source=path)
    return _read_cifar(path, binary, test_split)


def _kinds(path: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Return the pictures in sub-folders, the files of arrays, and those like CIFAR's.

    Pictures beside a table `metadata` are what that says.
    """
    files = visible_files(path) if path.is_dir() else [path]

    def of(suffixes: Sequence[str]) -> list[Path]:
        return [file for file in files if file.suffix.lower() in suffixes]

    has_classes = path.is_dir() and not any(map(is_index, files))
    pictures = [file for file in of(PICTURES) if has_classes and file.parent != path]
    return pictures, of(ARRAYS), of((".bin",))


def _read_cifar(
    root: Path, files: Sequence[Path], test_split: str | None
) -> tuple[Table, Iterator[Table]]:
    """Read the binary version of CIFAR-10 or CIFAR-100, whose names say which part they are of."""
    parts: dict[str, list[Path]] = {split: [] for split in (TRAIN, *TESTS)}
    for path in files:
        parts[(path != root and split_of(Path(path.name))) or TRAIN].append(path)
    if not parts[TRAIN]:
        raise DataError(f"{root} holds no training file; data_batch_1.bin or train.bin")
    train, *tests = (
        [_cifar(path) for path in parts[split]]
        for split in (TRAIN, *tests_among(parts, test_split, root))
    )
    return join_tables(train, source=str(root)), (
        join_tables(test, source=str(root)) for test in tests
    )


def _cifar(path: Path) -> Table:
    """Read a binary file: label bytes, then 3 x 32 x 32 values."""
    data = np.frombuffer(read_bytes(path), np.uint8)
    # a size may be a multiple of both records; the folder's CIFAR-100 files say train and test
    order = (3074, 3073) if path.stem in ("train", "test") else (3073, 3074)
    size = next((size for size in order if data.size and data.size % size == 0), None)
    if size is None:
        raise DataError(
            f"{path} is {data.size} bytes, no whole number of CIFAR records of 3073 or 3074 bytes"
        )
    rows = data.reshape(-1, size)
    images = rows[:, _CIFAR[size] :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = rows[:, _CIFAR[size] - 1].tolist()
    return table_from_rows(
        [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)],
        source=str(path),
    )
