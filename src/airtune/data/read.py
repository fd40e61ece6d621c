"""From a data spec to the rows of its training and test set, wherever they lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from airtune.data.embedded import EMBEDDED_PREFIX
from airtune.data.files import READERS, read_file, read_folder
from airtune.data.generated import TEST_ROWS, TRAIN_ROWS, generate
from airtune.data.hub import is_saved, read_hub, read_saved
from airtune.data.spec import DataSpec
from airtune.data.table import Table
from airtune.errors import DataError
from airtune.keys import generator


def read_rows(spec: DataSpec, *, seed: int) -> tuple[Table, Table | None]:
    """Return training and test rows; None where the source brings no test set of its own.

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
        test = _read_test(Path(spec.test).expanduser())
    train = _at_most(train, spec.limit, generator(seed, "limit"))
    if test is not None:
        test = _at_most(test, spec.test_limit, generator(seed, "test-limit"))
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
            raise DataError(f"no such file: {path}; check `{key}`")


def _read_source(spec: DataSpec) -> tuple[Table, Table | None]:
    path = Path(spec.source).expanduser()
    if path.is_dir() and is_saved(path):
        test = read_saved(path, split=spec.test_split) if spec.test_split else None
        return read_saved(path, split=spec.split), test
    if path.exists() or _looks_like_path(path):
        if spec.test_split is not None:
            raise DataError(
                f"{path} has no splits, got test_split {spec.test_split!r}; name a file as "
                "`data.test`"
            )
        return read_folder(path) if path.is_dir() else (read_file(path), None)
    names = {"subset": spec.subset, "revision": spec.revision}
    test = read_hub(spec.source, split=spec.test_split, **names) if spec.test_split else None
    return read_hub(spec.source, split=spec.split, **names), test


def _looks_like_path(path: Path) -> bool:
    """Say whether what is not there was meant as a path; a hub id is `name` or `owner/name`."""
    folder = path.parent
    return (
        path.is_absolute()
        or len(path.parts) > 2
        or path.suffix.lower() in READERS
        or (folder != Path() and folder.is_dir())
    )


def _read_test(path: Path) -> Table:
    if not path.is_dir():
        return read_file(path)
    train, test = read_folder(path)
    return train if test is None else test


def _at_most(table: Table, limit: int | None, random: np.random.Generator) -> Table:
    if limit is None or len(table) <= limit:
        return table
    return table.take(np.sort(random.permutation(len(table))[:limit]))


def set_aside(table: Table, share: float, random: np.random.Generator) -> tuple[Table, Table]:
    """Return the rows without and with those set aside as test set, drawn at random.

    Raises:
        DataError: if the share rounds to no row or to all of them.
    """
    count = round(share * len(table))
    if not 0 < count < len(table):
        raise DataError(
            f"{table.source} has no test set and {share:g} of its {len(table)} rows is {count}; "
            "name one as `data.test` or change `data.test_share`"
        )
    order = random.permutation(len(table))
    return table.take(np.sort(order[count:])), table.take(np.sort(order[:count]))
