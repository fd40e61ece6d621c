"""Folders with one sub-folder a class, in which each file is a picture or a text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from airtune.data.decode import decode, read_bytes
from airtune.data.files import kind_of
from airtune.data.folder import TRAIN, split_of, tests_among, visible, visible_files
from airtune.data.table import Table, table_from_rows
from airtune.errors import DataError

_TEXT = ".txt"


def read_class_folders(
    folder: Path,
    role: str,
    suffixes: Collection[str],
    value: Callable[[Path], object],
    test_split: str | None,
) -> tuple[Table, Iterator[Table]]:
    """Return the files of a folder with the names of their classes, and what can be the test.

    Args:
        folder: of classes, at the top, alone in another folder, or below folders of splits.
        role: "image" or "text", the column of the files.
        suffixes: what the files' names end in.
        value: what stands for a file.
        test_split: "test" or "validation"; None = either.

    Raises:
        DataError: if no such file is in a sub-folder, or the test split is not there.
    """

    def read(classes: Path) -> Table:
        files = [
            (path, kind.name)
            for kind in visible(classes)
            if kind.is_dir()
            for path in visible_files(kind)
            if path.suffix.lower() in suffixes
        ]
        if not files:
            raise DataError(
                f"{classes} holds no {role}s in sub-folders; one sub-folder a class with "
                f"{', '.join(suffixes)} is needed, or a table that names them as `data.source`"
            )
        rows = [{role: value(path), "label": name} for path, name in files]
        return table_from_rows(rows, source=str(classes))

    folder = _unwrapped(folder)
    inner = {split_of(Path(path.name)): path for path in visible(folder) if _holds_classes(path)}
    parts = {split: path for split, path in inner.items() if split} if TRAIN in inner else {}
    tests = tests_among(parts, test_split, folder)
    return read(parts.get(TRAIN, folder)), (read(parts[split]) for split in tests)


def holds_text_classes(folder: Path) -> bool:
    """Say whether a folder holds texts in sub-folders and no other data."""
    files = [path for path in visible_files(folder) if kind_of(path) is not None]
    texts = [path for path in files if path.suffix.lower() == _TEXT]
    return len(texts) == len(files) and any(path.parent != folder for path in texts)


def read_text_classes(
    folder: Path, encoding: str | None, test_split: str | None
) -> tuple[Table, Iterator[Table]]:
    """Return the texts of a folder, a row each, with the names of their classes.

    Raises:
        DataError: if a file cannot be read.
    """
    return read_class_folders(
        folder, "text", (_TEXT,), lambda path: decode(read_bytes(path), path, encoding), test_split
    )


def _holds_classes(folder: Path) -> bool:
    """Say whether a folder holds folders, as one of a split does; one of a class holds files."""
    return folder.is_dir() and any(path.is_dir() for path in visible(folder))


def _unwrapped(folder: Path) -> Path:
    """Return the folder of the classes, where others hold nothing but it, as archives do."""
    while len(held := [path for path in visible(folder) if path.is_dir()]) == 1:
        if not _holds_classes(held[0]):
            break
        folder = held[0]
    return folder
