"""Data sets from the hub, and folders that `datasets` saved; the only importer of `datasets`.

`HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` are obeyed by the library itself; where the hub does not
answer, what it has cached is read. Code that comes with a data set is never run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from airtune.data.folder import test_splits
from airtune.data.table import Table, name_labels, table_from_columns
from airtune.errors import DataError
from airtune.model.hub import is_out_of_reach

if TYPE_CHECKING:
    from datasets import Dataset

Splits: TypeAlias = tuple[Table, Iterator[Table]]
"""Training rows, and the rows of what can be the test, best first."""


def read_hub(
    source: str,
    *,
    split: str,
    test_split: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
) -> Splits:
    """Return the rows of a hub id: those for training, and those of its test splits, best first.

    Args:
        source: the hub id.
        split: for training; a part of one, `train[:10%]`, too.
        test_split: for the test; None = those that are named after it.
        subset: configuration.
        revision: commit, tag or branch.

    Raises:
        DataError: if there is no such data set, configuration or split, or no way to reach it.
    """
    import datasets  # slow to import, and local files do without
    from datasets.exceptions import DatasetsError

    def load(part: str | None) -> Any:
        try:
            with _from_cache_where_cut_off(source):
                return datasets.load_dataset(source, subset, split=part, revision=revision)
        except (DatasetsError, ValueError, OSError) as error:
            what = "it" if part is None else f"its split {part!r}"
            raise DataError(
                f"{source!r} is neither a file nor a folder here, and as a hub id {what} could not be "
                f"loaded: {_first_line(error)}; check the name, `data.subset` and `data.split`, the "
                "network and HF_TOKEN"
            ) from error

    held = load(None)
    return _splits(
        lambda name: held[name] if name in held else load(name), held, source, split, test_split
    )


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
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def read_saved(folder: Path, *, split: str | None, test_split: str | None = None) -> Splits:
    """Return the rows of a folder made by `save_to_disk`, for training and for the test.

    Args:
        folder: where it is.
        split: for training; None = the first that is not named after the test, or else the first.
        test_split: for the test; None = those that are named after it.

    Raises:
        DataError: if the folder is damaged or has no such split.
    """
    import datasets  # slow to import, and local files do without

    try:
        held = datasets.load_from_disk(str(folder))
    except IndexError as error:
        raise DataError(
            f"{folder} has a split without rows, which `datasets` does not read back; save it without"
        ) from error
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise DataError(f"{folder} cannot be read: {_first_line(error)}") from error
    if isinstance(held, datasets.Dataset):
        if test_split is not None:
            raise DataError(
                f"{folder} has no splits, got test_split {test_split!r}; name another folder as "
                "`data.test`"
            )
        return _table(held, str(folder)), iter(())

    def find(name: str) -> Dataset:
        if name not in held:
            raise DataError(
                f"{folder} has no split {name!r}; it has {', '.join(held)}: name one as `data.split`, "
                "or as `data.test_split` for the test"
            )
        return held[name]

    names = [*held]
    named = split or next((name for name in names if not test_splits([name])), names[0])
    return _splits(find, names, str(folder), named, test_split)


def _splits(
    find: Callable[[str], Dataset],
    names: Iterable[str],
    source: str,
    split: str,
    test_split: str | None,
) -> Splits:
    """Return the training rows, and those of each split that can be the test as they are asked for."""
    others = [name for name in names if name != split]
    tests = test_splits(others) if test_split is None else [test_split]
    found = [(name, find(name)) for name in tests]
    return _table(find(split), source), (_table(rows, f"{source} ({name})") for name, rows in found)


def _table(rows: Dataset, source: str) -> Table:
    from datasets import ClassLabel, Image

    for name, each in rows.features.items():
        if isinstance(each, Image):  # decoded as all pictures are, and a damaged one is named
            rows = rows.cast_column(name, Image(decode=False))
    named = {
        name: each.names for name, each in rows.features.items() if isinstance(each, ClassLabel)
    }
    columns = name_labels({name: list(rows[name]) for name in rows.column_names}, named)
    if not len(rows):
        raise DataError(f"{source} holds no rows")
    return table_from_columns(columns, source=source)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
