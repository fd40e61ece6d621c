"""From a data spec to the rows of its training and test set, wherever they lie."""

from __future__ import annotations

from pathlib import Path

from airtune.data.embedded import EMBEDDED_PREFIX
from airtune.data.files import kind_of, read_file
from airtune.data.folder import read_folder, read_test_folder
from airtune.data.generated import TEST_ROWS, TRAIN_ROWS, generate
from airtune.data.hub import is_saved, read_hub, read_saved
from airtune.data.spec import DataSpec
from airtune.data.table import Table
from airtune.errors import DataError


def read_rows(spec: DataSpec, *, seed: int) -> tuple[Table, Table | None]:
    """Return all training and test rows; None where the source brings no test set of its own.

    `limit` and `test_limit` say how many rows embedded data are made of; they cut nothing here.

    Raises:
        DataError: if anything is missing or malformed, with file and line.
    """
    if spec.source.startswith(EMBEDDED_PREFIX):
        return generate(
            spec.source,
            train=spec.limit or TRAIN_ROWS,
            test=spec.test_limit or TEST_ROWS,
            seed=seed,
        )
    train, test = _read_source(spec)
    if spec.test is not None:
        test = _read_test(Path(spec.test).expanduser(), spec.encoding)
    return train, test


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
            raise DataError(f"no such file: {path.absolute()}; check `{key}`")


def _read_source(spec: DataSpec) -> tuple[Table, Table | None]:
    path = Path(spec.source).expanduser()
    if path.is_dir() and is_saved(path):
        test = read_saved(path, split=spec.test_split) if spec.test_split else None
        return read_saved(path, split=spec.split), test
    if path.is_dir():
        return read_folder(
            path, subset=spec.subset, test_split=spec.test_split, encoding=spec.encoding
        )
    if path.exists() or _looks_like_path(path):
        if spec.test_split is not None:
            raise DataError(
                f"{path} has no splits, got test_split {spec.test_split!r}; name a file as "
                "`data.test`"
            )
        return read_file(path, encoding=spec.encoding), None
    names = {"subset": spec.subset, "revision": spec.revision}
    test = read_hub(spec.source, split=spec.test_split, **names) if spec.test_split else None
    return read_hub(spec.source, split=spec.split, **names), test


def _looks_like_path(path: Path) -> bool:
    """Say whether what is not there was meant as a path; a hub id is `name` or `owner/name`."""
    folder = path.parent
    return (
        path.is_absolute()
        or len(path.parts) > 2
        or kind_of(path) is not None
        or (folder != Path() and folder.is_dir())
    )


def _read_test(path: Path, encoding: str | None) -> Table:
    read = read_test_folder if path.is_dir() else read_file
    return read(path, encoding=encoding)
