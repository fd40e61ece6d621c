"""Data sets from the hub, and folders that `datasets` saved; the only importer of `datasets`.

`HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` are obeyed by the library itself; where the hub does not
answer, what it has cached is read. Code that comes with a data set is never run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from airtune.data.table import Table, name_labels, table_from_rows
from airtune.errors import DataError
from airtune.model.hub import is_out_of_reach

if TYPE_CHECKING:
    from datasets import Dataset


def read_hub(
    source: str, *, split: str, subset: str | None = None, revision: str | None = None
) -> Table:
    """Return the rows of one split of a hub id.

    Raises:
        DataError: if there is no such data set, configuration or split, or no way to reach it.
    """
    import datasets  # slow to import, and local files do without
    from datasets.exceptions import DatasetsError

    try:
        with _from_cache_where_cut_off(source):
            rows = datasets.load_dataset(source, subset, split=split, revision=revision)
    except (DatasetsError, ValueError, OSError) as error:
        raise DataError(
            f"{source!r} is neither a file nor a folder here, and as a hub id its split {split!r} "
            f"could not be loaded: {_first_line(error)}; check the name, `data.subset` and "
            "`data.split`, the network and HF_TOKEN"
        ) from error
    return _table(rows, source)


@contextmanager
def _from_cache_where_cut_off(source: str) -> Iterator[None]:
    """Have `datasets` look in its cache only, at once, where the hub does not answer."""
    from datasets import config

    offline = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = offline or (not Path(source).exists() and is_out_of_reach())
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = offline


def is_saved(folder: Path) -> bool:
    """Say whether a folder was made by `save_to_disk` of the `datasets` library."""
    return any((folder / name).exists() for name in ("dataset_dict.json", "state.json"))


def read_saved(folder: Path, *, split: str) -> Table:
    """Return the rows of one split of a folder made by `save_to_disk`.

    Raises:
        DataError: if the folder is damaged or has no such split.
    """
    import datasets  # slow to import, and local files do without

    try:
        rows = datasets.load_from_disk(str(folder))
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise DataError(f"{folder} cannot be read: {_first_line(error)}") from error
    if isinstance(rows, datasets.DatasetDict):
        if split not in rows:
            raise DataError(
                f"{folder} has no split {split!r}; it has {', '.join(rows)}: name one as `data.split`, "
                "or as `data.test_split` for the test"
            )
        rows = rows[split]
    return _table(rows, str(folder))


def _table(rows: Dataset, source: str) -> Table:
    from datasets import ClassLabel

    named = {
        name: each.names for name, each in rows.features.items() if isinstance(each, ClassLabel)
    }
    columns = name_labels({name: list(rows[name]) for name in rows.column_names}, named)
    length = len(rows)
    if not length:
        raise DataError(f"{source} holds no rows")
    table = table_from_rows([{}] * length, source=source)
    return Table(columns, source, table.file, table.line, table.files)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
