"""Reading parquet and Arrow files, with the names of classes that the hub's tools leave in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from airtune.data.table import Table, name_labels, table_from_columns
from airtune.errors import DataError


def read_parquet(data: bytes, path: Path) -> Table:
    """Return the rows of a parquet file.

    Raises:
        DataError: if it is none.
    """
    import pyarrow.parquet  # type: ignore[import-untyped]  # slow to import, and few need it

    return _read(lambda held: pyarrow.parquet.ParquetFile(held).read(), data, path)


def read_arrow(data: bytes, path: Path) -> Table:
    """Return the rows of a file or stream of Arrow, as Feather and `datasets` write them.

    Raises:
        DataError: if it is none.
    """
    from pyarrow import ipc

    is_file = data.startswith(b"ARROW1")
    return _read(
        lambda held: (ipc.open_file if is_file else ipc.open_stream)(held).read_all(), data, path
    )


def _read(read: Callable[[Any], Any], data: bytes, path: Path) -> Table:
    import pyarrow

    try:
        held = read(pyarrow.BufferReader(data))
        columns = {
            str(name): [_plain_number(value) for value in held.column(index).to_pylist()]
            for index, name in enumerate(held.column_names)
        }
    # text that is no UTF-8 and times beyond Python's show only in the values
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is not a valid {path.suffix[1:]} file: {error}") from error
    named = name_labels(columns, _class_names(held.schema.metadata or {}))
    return table_from_columns(named, source=str(path))


def _plain_number(value: object) -> object:
    """Return a decimal number, as databases write whole numbers, as a number of Python."""
    if not isinstance(value, Decimal):
        return value
    return int(value) if value == value.to_integral_value() else float(value)


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, Sequence[str]]:
    """Return the names of label columns, as `datasets` leaves them in a file's metadata."""
    try:
        said = json.loads(metadata.get(b"huggingface", b"{}").decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return {}
    features = _object(_object(said).get("info")).get("features")
    names = {name: _object(one).get("names") for name, one in _object(features).items()}
    return {
        name: words
        for name, words in names.items()
        if isinstance(words, list) and all(isinstance(word, str) for word in words)
    }


def _object(value: object) -> Mapping[str, object]:
    """Return an object of JSON, an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}
