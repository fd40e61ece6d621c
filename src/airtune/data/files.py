"""Reading jsonl, json, csv, tsv, parquet, arrow, txt and log files.

Lines are read here and not by `datasets`, so that a fault can be told by file and line.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from airtune.data.columnar import read_arrow, read_parquet
from airtune.data.decode import decode, no_such_file, read_bytes, unpacked_name
from airtune.data.table import Table, refuse_deep, table_from_rows
from airtune.data.tabular import read_separated
from airtune.errors import DataError

_ROTATED = re.compile(r"(\.log)(\.\d+|\.\d{4}-?\d{2}-?\d{2})$")
"""`app.log.1`: the end of a log's name says which one it is."""


def read_file(path: Path, *, encoding: str | None = None) -> Table:
    """Return the rows of one file; the suffix says what it is, with that of a packed one after it.

    Args:
        path: the file.
        encoding: of text without a byte order mark; None = UTF-8.

    Raises:
        DataError: if the file is missing, empty, of an unknown kind or malformed, with the line.
    """
    table = read_table(path, encoding)
    if not len(table):
        raise DataError(f"{path} holds no rows")
    return table


def read_table(path: Path, encoding: str | None) -> Table:
    """Return the rows of one file, as `read_file` does; one of several may have none.

    Raises:
        DataError: if the file is missing, of an unknown kind or malformed, with the line.
    """
    kind = kind_of(path)
    if kind is None:
        if not path.exists():
            raise no_such_file(path)
        raise DataError(
            f"{path} is of no known kind; the suffix must be one of {', '.join(SUFFIXES)} (pictures and "
            "their arrays need data.task: image-classification)"
        )
    data = read_bytes(path)
    if kind in _BINARY:
        table = _BINARY[kind](data, path)
    else:
        table = _READERS[kind](decode(data, path, encoding), path)
    refuse_deep(table)
    return table


def kind_of(path: Path) -> str | None:
    """Return the suffix that says how a file is read; None where it is no data file.

    >>> [kind_of(Path(name)) for name in ("a.CSV", "a.jsonl.gz", "app.log.3", "a.doc")]
    ['.csv', '.jsonl', '.log', None]
    """
    suffix = Path(_ROTATED.sub(r"\1", unpacked_name(path).lower())).suffix
    return suffix if suffix in SUFFIXES else None


def is_text(path: Path) -> bool:
    """Say whether a file is a data file of text, in some encoding."""
    return kind_of(path) in _READERS


def _read_jsonl(text: str, path: Path) -> Table:
    if text.lstrip().startswith("["):
        rows = _objects(_parsed(text))
        if rows is not None:
            return table_from_rows(rows, source=str(path))
    numbered = [(number, line) for number, line in enumerate(_lines(text), start=1) if line.strip()]
    rows = [_parse_object(line, f"{path}:{number}") for number, line in numbered]
    return table_from_rows(rows, source=str(path), lines=[number for number, _ in numbered])


def _parse_object(text: str, where: str) -> Mapping[str, object]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not valid JSON ({error.msg} at character {error.pos + 1}); each line must "
            "be one object"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: JSON that cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: each line must be one object, got {type(value).__name__}")
    return value


def _read_json(text: str, path: Path) -> Table:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if all(_objects([_parsed(line)]) for line in _lines(text) if line.strip()):
            return _read_jsonl(text, path)
        line = getattr(error, "lineno", 1)
        raise DataError(
            f"{path}:{line}: not valid JSON ({getattr(error, 'msg', error)}); it must be a list "
            "of objects, or one object a line"
        ) from error
    rows = _objects(value)
    rows = _of_columns(value) if rows is None else rows
    if rows is None:
        keys = f" with {', '.join(map(str, value))[:60]}" if isinstance(value, dict) else ""
        raise DataError(
            f"{path} must hold a list of objects, an object with one such list, or columns of equal "
            f"length, got {type(value).__name__}{keys}; parts such as train and test belong in files "
            "of their own"
        )
    return table_from_rows(rows, source=str(path))


def _parsed(text: str) -> object:
    """Return what JSON says, or None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _objects(value: object) -> Sequence[Mapping[str, object]] | None:
    """Return a list of objects, or the one such list of an object; None where there is none."""
    if isinstance(value, list):
        return value if all(isinstance(row, dict) for row in value) else None
    lists = list(value.values()) if isinstance(value, dict) else []
    found = [rows for rows in lists if isinstance(rows, list) and rows and _objects(rows)]
    return found[0] if len(found) == 1 else None


def _of_columns(value: object) -> Sequence[Mapping[str, object]] | None:
    """Return the rows of an object of columns, lists or pandas' objects by row; None for others."""
    if not isinstance(value, dict) or not value:
        return None
    columns = list(value.values())
    if all(isinstance(one, dict) and [*one] == [*columns[0]] for one in columns):
        columns = [list(one.values()) for one in columns]
    if not all(isinstance(one, list) and len(one) == len(columns[0]) for one in columns):
        return None
    if all(isinstance(item, dict) for one in columns for item in one):  # parts, not columns
        return None
    return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]


def _read_lines(text: str, path: Path) -> Table:
    """Return a text a line."""
    numbered = [(at, line.strip()) for at, line in enumerate(_lines(text), 1) if line.strip()]
    return table_from_rows(
        [{"text": line} for _, line in numbered], source=str(path), lines=[at for at, _ in numbered]
    )


def _read_text(text: str, path: Path) -> Table:
    """Return a text a paragraph where blank lines part them, else a text a line."""
    if not re.search(r"\n[ \t]*\n", "\n".join(_lines(text)).strip()):
        return _read_lines(text, path)
    rows: list[str] = []
    starts: list[int] = []
    is_open = False
    for number, line in enumerate(_lines(text), start=1):
        if line.strip() and is_open:
            rows[-1] += f"\n{line.rstrip()}"
        elif line.strip():
            rows.append(line.strip())
            starts.append(number)
        is_open = bool(line.strip())
    return table_from_rows([{"text": row} for row in rows], source=str(path), lines=starts)


def _lines(text: str) -> list[str]:
    """Return the lines; only line feeds and carriage returns end one, as JSON wants it."""
    return [line.rstrip("\n") for line in io.StringIO(text, newline=None)]


_READERS: Mapping[str, Callable[[str, Path], Table]] = {
    ".jsonl": _read_jsonl,
    ".jsonlines": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": partial(read_separated, usual=","),
    ".tsv": partial(read_separated, usual="\t"),
    ".txt": _read_text,
    ".log": _read_lines,
}
_BINARY: Mapping[str, Callable[[bytes, Path], Table]] = {
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
}
SUFFIXES = (*_READERS, *_BINARY)
"""What a data file's name ends in."""
