"""Which files of a folder are data, and which of them are training and which test data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from airtune.data.decode import encoding_of, read_bytes, unpacked_name
from airtune.data.files import SUFFIXES, is_text, kind_of, read_table
from airtune.data.picture import PICTURES
from airtune.data.table import Table, join_tables
from airtune.errors import DataError

TRAIN = "train"
TESTS = ("test", "validation")
"""Splits that can be the test set, best first."""
_PLAIN = (".txt", ".log")
"""Read only where a folder holds nothing with columns."""
_SPLITS: Mapping[str, re.Pattern[str]] = {
    "validation": re.compile(r"(^|[^a-z])(dev|val|valid|validation|eval)([^a-z]|$)"),
    "test": re.compile(r"(^|[^a-z])test(ing|set|data)?([^a-z]|$)"),
    TRAIN: re.compile(r"(^|[^a-z])train(ing|set|data)?([^a-z]|$)"),
}
"""Split -> the words in a name that say so; the first that is found decides."""
_NO_DATA = frozenset({
    "readme", "license", "licence", "notice", "changelog", "citation", "requirements", "metadata",
    "dataset_info", "dataset_infos", "dataset_dict", "state", "config",
})  # fmt: skip
"""What stands beside data and is none."""
_LEFTOVERS = frozenset({"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin"})
"""What other systems leave in folders, beside names that begin with a dot."""


def visible_files(folder: Path) -> list[Path]:
    """Return all files below a folder, sorted; hidden ones and leavings of systems are no data.

    A folder is walked once, however many links lead to it, and none that the folder lies in.
    """
    files: list[Path] = []
    folders, links = [folder], list[Path]()
    walked = set(folder.resolve().parents)
    while folders or links:
        current = folders.pop() if folders else links.pop(0)
        if current.resolve() in walked:
            continue
        walked.add(current.resolve())
        for path in visible(current):
            if not path.is_dir():
                files.append(path)
            else:
                (links if path.is_symlink() else folders).append(path)
    return sorted(files)


def visible(folder: Path) -> list[Path]:
    """Return what a folder holds, sorted, without what is hidden or left by systems."""
    return [
        path
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".") and path.name.lower() not in _LEFTOVERS
    ]


def apart(name: str) -> str:
    """Return a name in small letters, with a sign where a capital begins a word."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def split_of(name: Path) -> str | None:
    """Return the split that a relative path names: in the file's name, else in a folder's.

    >>> split_of(Path("data/testSet-00000-of-00001.parquet")), split_of(Path("train/latest.log"))
    ('test', 'train')
    """
    for part in (name.stem, *reversed(name.parts[:-1])):
        for split, pattern in _SPLITS.items():
            if pattern.search(apart(part)):
                return split
    return None


def test_splits(names: Iterable[str]) -> list[str]:
    """Return the names that say that they are the test, then those that say validation.

    >>> test_splits(["train", "validation_matched", "test_matched", "extra"])
    ['test_matched', 'validation_matched']
    """
    said = {name: split_of(Path(name)) for name in names}
    return [name for split in TESTS for name in said if said[name] == split]


def tests_among(parts: Mapping[str, object], test_split: str | None, source: Path) -> list[str]:
    """Return the splits of a source that can be the test, best first.

    Args:
        parts: what each split holds; an empty one counts not.
        test_split: "test" or "validation", or another word for one of them; None = either.
        source: named in errors.

    Raises:
        DataError: if the one that is named is not there.
    """
    wanted = TESTS if test_split is None else (split_of(Path(test_split)),)
    tests = [split for split in TESTS if split in wanted and parts.get(split)]
    if test_split and not tests:
        raise DataError(
            f"{source} has no file for test_split {test_split!r}; name one as `data.test`"
        )
    return tests


def subset_of(folder: Path, subset: str | None) -> Path:
    """Return a sub-folder, at the top or below `data`; the folder itself where None is asked for.

    Raises:
        DataError: if it is not there.
    """
    if subset is None:
        return folder
    found = [path for path in (folder / subset, folder / "data" / subset) if path.is_dir()]
    if not found:
        raise DataError(f"{folder} has no sub-folder {subset!r}; check `data.subset`")
    return found[0]


def read_folder(
    root: Path, *, test_split: str | None = None, encoding: str | None = None
) -> tuple[Table, Iterator[Table]]:
    """Return the training rows, and what files named after it hold for the test, best first.

    Sub-folders are looked into where the files at the top are not for training, as in a clone of
    a hub's data set. A file that names no split is for training. Plain text is read only where
    nothing has columns.

    Args:
        root: where to look.
        test_split: "test" or "validation"; None = either.
        encoding: of text without a byte order mark.

    Raises:
        DataError: if the folder holds no training file, files with unlike columns, or one file in
            two formats.
    """
    splits = _by_split(root)
    if not splits[TRAIN]:
        raise DataError(_nothing(root))
    return _joined(root, splits[TRAIN], encoding), (
        replace(_joined(root, splits[split], encoding), source=f"{root} ({split})")
        for split in tests_among(splits, test_split, root)
    )


def read_test_folder(folder: Path, *, encoding: str | None = None) -> Table:
    """Return the rows of a folder's test files, or of all its files where none is named after it.

    Raises:
        DataError: if the folder holds no data file, or files with unlike columns.
    """
    splits = _by_split(folder)
    paths = splits["test"] or splits[TRAIN] or splits["validation"]
    if not paths:
        raise DataError(_nothing(folder))
    return _joined(folder, paths, encoding)


def proposed_encoding(path: Path) -> str | None:
    """Return a `data.encoding` for a file, or for a folder's data files; None = the default reads.

    Raises:
        DataError: if a file cannot be read.
    """
    files = [file for file in visible_files(path) if _is_data(file)] if path.is_dir() else [path]
    texts = (file for file in files if file.is_file() and is_text(file))
    return next((found for file in texts if (found := encoding_of(read_bytes(file)))), None)


def _joined(root: Path, paths: Sequence[Path], encoding: str | None) -> Table:
    _refuse_twins(paths)
    tables = [table for path in paths if len(table := read_table(path, encoding))]
    if not tables:
        raise DataError(f"{root} holds no rows in {', '.join(path.name for path in paths[:3])}")
    return join_tables(tables, source=str(root))


def _by_split(root: Path) -> dict[str, list[Path]]:
    """Sort data files by their split; what names none is for training.

    The files at the top count if one of them is named after training, else those of all
    sub-folders if one of those is, else what is at the top, else all.
    """
    files = [path for path in visible_files(root) if _is_data(path)]
    structured = [path for path in files if kind_of(path) not in _PLAIN] or files
    top = [path for path in structured if path.parent == root]
    says = {path: split_of(path.relative_to(root)) for path in structured}
    for some in (top, structured):
        if TRAIN in (says[path] for path in some):
            break
    else:
        some = top if None in (says[path] for path in top) else structured
    splits: dict[str, list[Path]] = {split: [] for split in _SPLITS}
    for path in some:
        splits[says[path] or TRAIN].append(path)
    return splits


def _is_data(path: Path) -> bool:
    named = path.name.lower().partition(".")[0] not in _NO_DATA
    return kind_of(path) is not None and (named or is_index(path))


def is_index(path: Path) -> bool:
    """Say whether a file is the table `metadata` of pictures that lie beside it."""
    is_named = path.name.lower().partition(".")[0] == "metadata" and kind_of(path) is not None
    return is_named and any(one.suffix.lower() in PICTURES for one in path.parent.iterdir())


def _refuse_twins(paths: Sequence[Path]) -> None:
    """Refuse a file that is there in two formats, or packed and not: its rows would count twice."""
    seen: dict[Path, Path] = {}
    for path in paths:
        unpacked = path.with_name(unpacked_name(path))
        other = seen.setdefault(unpacked.with_suffix(""), path)
        is_packed_too = other != path and unpacked_name(other) == unpacked.name
        if kind_of(other) != kind_of(path) or is_packed_too:
            raise DataError(
                f"{other} and {path.name} look like one file in two formats; name one of them as "
                "`data.source`"
            )


def _nothing(root: Path) -> str:
    others = [path.relative_to(root).as_posix() for path in visible_files(root)][:5]
    held = f"; it holds {', '.join(others)}" if others else ""
    return (
        f"{root} holds no training file ({', '.join(SUFFIXES)}), nor pictures in one sub-folder a "
        f"class (data.task: image-classification){held}"
    )
