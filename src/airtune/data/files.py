"""Reading jsonl, json, csv, tsv and parquet files, and folders of them.

Lines are read here and not by `datasets`, so that a fault can be told by file and line.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from airtune.data.table import Table, join_tables, table_from_rows
from airtune.errors import DataError

_TEST = re.compile(r"(^|[^a-z])test([^a-z]|$)")
_ASIDE = re.compile(r"(^|[^a-z])(dev|val|valid|validation|readme|dataset_info)([^a-z]|$)")


def read_file(path: Path) -> Table:
    """Return the rows of one file; the suffix says what it is.

    Raises:
        DataError: if the file is missing, empty, of an unknown kind or malformed, with the line.
    """
    if path.suffix.lower() not in READERS:
        raise DataError(
            f"{path} is of no known kind; the suffix must be one of {', '.join(READERS)}"
        )
    try:
        table = READERS[path.suffix.lower()](path)
    except FileNotFoundError as error:
        raise DataError(f"no such file: {path}; check `data.source` and `data.test`") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); convert it") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if not len(table):
        raise DataError(f"{path} holds no rows")
    return table


def read_folder(folder: Path) -> tuple[Table, Table | None]:
    """Return the training rows and, where a file has `test` in its name, the test rows.

    Files with dev, val or validation in their name are left aside: each device holds out its own.

    Raises:
        DataError: if the folder holds no training file or files with unlike columns.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in READERS)
    files = [path for path in files if not _ASIDE.search(path.stem.lower())]
    test = [path for path in files if _TEST.search(path.stem.lower())]
    train = [path for path in files if path not in test]
    if not train:
        raise DataError(f"{folder} holds no training file ({', '.join(READERS)})")
    tables = [read_file(path) for path in train]
    tests = [read_file(path) for path in test]
    name = str(folder)
    return join_tables(tables, source=name), join_tables(tests, source=name) if tests else None


def _read_jsonl(path: Path) -> Table:
    rows: list[Mapping[str, object]] = []
    lines: list[int] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                rows.append(_parse_object(line, f"{path}:{number}"))
                lines.append(number)
    return table_from_rows(rows, source=str(path), lines=lines)


def _parse_object(text: str, place: str) -> Mapping[str, object]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{place}: not valid JSON ({error.msg} at character {error.pos + 1}); each line must "
            "be one object"
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{place}: each line must be one object, got {type(value).__name__}")
    return value


def _read_json(path: Path) -> Table:
    text = path.read_text(encoding="utf-8-sig")
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not valid JSON ({error.msg}); a file with one object a line "
            "is named .jsonl"
        ) from error
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise DataError(f"{path} must hold a list of objects, got {type(rows).__name__}")
    return table_from_rows(rows, source=str(path))


def _read_csv(path: Path) -> Table:
    rows: list[Mapping[str, object]] = []
    lines: list[int] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        try:
            for row in reader:
                _check_csv(row, f"{path}:{reader.line_num}", len(reader.fieldnames or ()))
                rows.append(row)
                lines.append(reader.line_num)
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not valid CSV ({error})") from error
    return table_from_rows(rows, source=str(path), lines=lines)


def _check_csv(row: Mapping[str | None, object], place: str, wanted: int) -> None:
    extra = row.get(None)
    has = wanted + len(extra) if isinstance(extra, list) else wanted
    has -= sum(value is None for value in row.values())
    if has != wanted:
        raise DataError(f"{place}: a row must have {wanted} values as the head has, got {has}")


def _read_parquet(path: Path) -> Table:
    import pyarrow  # type: ignore[import-untyped]  # slow to import, and few need it
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is not a valid parquet file: {error}") from error
    return table_from_rows(table.to_pylist(), source=str(path))


READERS: Mapping[str, Callable[[Path], Table]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
