"""From a data spec to the rows of its training and test set, wherever they lie."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from airtune.data.class_folders import holds_text_classes, read_text_classes
from airtune.data.decode import no_such_file
from airtune.data.embedded import EMBEDDED_PREFIX
from airtune.data.files import kind_of, read_file
from airtune.data.folder import read_folder, read_test_folder, subset_of
from airtune.data.generated import TEST_ROWS, TRAIN_ROWS, generate
from airtune.data.hub import is_saved, read_hub, read_saved
from airtune.data.image_sources import holds_pictures, read_pictures
from airtune.data.spec import DataSpec
from airtune.data.table import Table
from airtune.errors import DataError


def read_rows(spec: DataSpec, *, seed: int) -> tuple[Table, Iterable[Table]]:
    """Return all training rows, and the rows of what can be the test set, best first.

    The latter are read as they are asked for; there are none where the source brings no test set of
    its own. `limit` and `test_limit` say how many rows embedded data are made of; they cut nothing
    here.

    Raises:
        DataError: if anything is missing or malformed, with file and line.
    """
    if spec.source.startswith(EMBEDDED_PREFIX):
        train, test = generate(
            spec.source,
            train=spec.limit or TRAIN_ROWS,
            test=spec.test_limit or TEST_ROWS,
            seed=seed,
        )
        return train, [test]
    path = Path(spec.source).expanduser()
    train, tests = _read_source(subset_of(path, spec.subset) if path.exists() else path, spec)
    if spec.test is not None:
        tests = _read_test(Path(spec.test).expanduser(), spec)
    return train, tests


def check_places(spec: DataSpec) -> None:
    """Refuse files and folders that are not there, without reading them.

    Raises:
        DataError: naming the key and the path.
    """
    for key, value in (("data.source", spec.source), ("data.test", spec.test)):
        if value is None or value.startswith(EMBEDDED_PREFIX):
            continue
        path = Path(value).expanduser()
        # a source that is no path is a hub id; a test set never is
        if not path.exists() and (key == "data.test" or _looks_like_path(path)):
            raise no_such_file(path, key)


def _read_source(path: Path, spec: DataSpec) -> tuple[Table, Iterable[Table]]:
    if is_saved(path):
        return read_saved(path, split=spec.split, test_split=spec.test_split)
    if _is_of_pictures(path, spec):
        return read_pictures(path, spec.columns, spec.test_split)
    if _is_of_text_classes(path, spec):
        return read_text_classes(path, spec.encoding, spec.test_split)
    if path.is_dir():
        return read_folder(path, test_split=spec.test_split, encoding=spec.encoding)
    if path.exists() or _looks_like_path(path):
        if spec.test_split is not None:
            raise DataError(
                f"{path} has no splits, got test_split {spec.test_split!r}; name a file as "
                "`data.test`"
            )
        return read_file(path, encoding=spec.encoding), ()
    return read_hub(
        spec.source,
        split=spec.split,
        test_split=spec.test_split,
        subset=spec.subset,
        revision=spec.revision,
    )


def _looks_like_path(path: Path) -> bool:
    """Say whether what is not there was meant as a path; a hub id is `name` or `owner/name`."""
    folder = path.parent
    return (
        path.is_absolute()
        or len(path.parts) > 2
        or kind_of(path) is not None
        or holds_pictures(path)
        or (folder != Path() and folder.is_dir())
    )


def _read_test(path: Path, spec: DataSpec) -> Iterable[Table]:
    tests: Iterable[Table] = ()
    if is_saved(path):
        train, tests = read_saved(path, split=None)
    elif _is_of_pictures(path, spec) or _is_of_text_classes(path, spec):
        train, tests = _read_source(path, replace(spec, test_split=None))
    else:
        read = read_test_folder if path.is_dir() else read_file
        train = read(path, encoding=spec.encoding)
    return [*tests] or [train]


def _is_of_pictures(path: Path, spec: DataSpec) -> bool:
    return spec.task == "image-classification" and path.exists() and holds_pictures(path)


def _is_of_text_classes(path: Path, spec: DataSpec) -> bool:
    return spec.task == "classification" and path.is_dir() and holds_text_classes(path)
