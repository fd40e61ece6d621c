"""Writing and reading a run folder; the rules are in the package's docstring."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from airtune.errors import CheckpointError, RunExistsError, StorageError
from airtune.records.files import add, cut, storage, write_atomically, write_csv
from airtune.records.metric import range_fault
from airtune.records.table import (
    DEVICE_COLUMNS,
    Columns,
    format_rows,
    header_line,
    join,
    names_in,
    parse_rows,
)

SCHEMA = 1

Json = dict[str, Any]

_UPGRADES: dict[int, Callable[[Json], Json]] = {}
"""Schema number -> function that turns such a header into one of the next schema."""

_NAMES = ("run.json", "rounds.jsonl", "devices.csv", "rounds.csv", "result.json")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as its folder tells it."""

    folder: Path
    header: Json
    rounds: list[Json]
    devices: Columns
    """Columns of `devices.csv` over all rounds; numbers as float64 or int64, text as objects."""
    results: Json | None
    """What the run ended with; None while it has not ended."""


class RunWriter:
    """Appends rounds to a run folder; made by `create` or `resume`, not by hand."""

    def __init__(
        self, folder: Path, rounds_bytes: int, devices_bytes: int, names: Sequence[str]
    ) -> None:
        self.folder, self._names = folder, names
        self._rounds_bytes = rounds_bytes
        self._devices_bytes = devices_bytes

    @classmethod
    def create(cls, folder: Path | str, header: Mapping[str, Any]) -> Self:
        """Start the records of a new run.

        Args:
            folder: the run folder; made where it is missing.
            header: what is known before the first round; the schema number is added.

        Raises:
            RunExistsError: if the folder already holds records.
            StorageError: if it cannot be written.
        """
        folder = Path(folder)
        if present := [name for name in _NAMES if (folder / name).exists()]:
            raise RunExistsError(
                f"the run folder {folder} already holds {present[0]}; choose another output or "
                f"continue with --resume {folder}"
            )
        with storage(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "rounds.jsonl").write_bytes(b"")
            (folder / "devices.csv").write_bytes(header_line())
        write_atomically(folder / "run.json", _document({**header, "schema": SCHEMA}))
        return cls(folder, 0, len(header_line()), DEVICE_COLUMNS)

    @classmethod
    def resume(cls, folder: Path | str, rounds: int) -> Self:
        """Continue a run after its first `rounds` rounds; whatever follows them is cut off.

        Raises:
            CheckpointError: if fewer rounds are recorded, or those that are kept are damaged.
            StorageError: if the files cannot be written.
        """
        folder = Path(folder)
        _read_header(folder)
        lines = _read_lines(folder)
        if len(lines) < rounds:
            raise CheckpointError(
                f"{folder / 'rounds.jsonl'} holds {len(lines)} whole rounds, but the checkpoint "
                f"was taken after {rounds}; restore the file or start the run again"
            )
        kept = [_parse_line(folder, number, line) for number, line in enumerate(lines[:rounds], 1)]
        rounds_bytes = sum(len(line) + 1 for line in lines[:rounds])
        names = _names_of(folder, _read_file(folder / "devices.csv"))
        devices_bytes = len(header_line(names)) + sum(block["bytes"] for _, block in kept)
        for _ in _blocks(folder, [block for _, block in kept]):
            pass
        # rounds.jsonl says what counts, so a kill between the two cuts leaves a readable run
        cut(folder / "rounds.jsonl", rounds_bytes)
        cut(folder / "devices.csv", devices_bytes)
        (folder / "result.json").unlink(missing_ok=True)
        return cls(folder, rounds_bytes, devices_bytes, names)

    def append(self, round_record: Mapping[str, Any], devices: Mapping[str, ArrayLike]) -> None:
        """Add one round; it is on the disk, whole or not at all, when this returns.

        Args:
            round_record: the round in plain values; must hold `round`.
            devices: every name of `DEVICE_COLUMNS` but `round`, as columns of shape (n,); a
                scalar stands for all rows.

        Raises:
            ValueError: if a column is missing, unknown or of another length, or a quality is outside
                its metric's range.
            StorageError: if the disk is full; the files are then as before.
        """
        for part in ("initial", "validation", "validation_before"):
            _check_range(f"round {round_record['round']}, {part}", round_record.get(part))
        table = format_rows({"round": round_record["round"], **devices}, self._names)
        block = {"rows": table.count(b"\n"), "bytes": len(table), "crc32": zlib.crc32(table)}
        line = _format_line(round_record, block)
        try:
            add(self.folder / "devices.csv", table, self._devices_bytes)
            add(self.folder / "rounds.jsonl", line, self._rounds_bytes)
        except StorageError:
            cut(self.folder / "rounds.jsonl", self._rounds_bytes)
            cut(self.folder / "devices.csv", self._devices_bytes)
            raise
        self._devices_bytes += len(table)
        self._rounds_bytes += len(line)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write `rounds.csv` and `result.json`, which mark the run as ended.

        Raises:
            ValueError: if a quality is outside its metric's range.
            StorageError: if the disk is full.
        """
        for part, quality in results.items():
            _check_range(part, quality)
        write_rounds_csv(read_rounds(self.folder), self.folder / "rounds.csv")
        write_atomically(self.folder / "result.json", _document(results))


def read_run(folder: Path | str) -> RunRecord:
    """Read a run folder, ended or not.

    Raises:
        CheckpointError: if it is no run folder, was written by a newer version, or is damaged.
    """
    folder = Path(folder)
    header = _read_header(folder)
    lines = _read_lines(folder)
    parsed = [_parse_line(folder, number, line) for number, line in enumerate(lines, 1)]
    tables = list(_blocks(folder, [block for _, block in parsed]))
    results = folder / "result.json"
    return RunRecord(
        folder=folder,
        header=header,
        rounds=_judged([record for record, _ in parsed]),
        devices=join(tables),
        results=_read_document(results) if results.exists() else None,
    )


def amend_header(folder: Path, changes: Mapping[str, Any]) -> None:
    """Replace fields of a run's header.

    Raises:
        CheckpointError: if it is missing or damaged.
        StorageError: if it cannot be written.
    """
    write_atomically(folder / "run.json", _document({**_read_header(folder), **changes}))


def read_rounds(folder: Path | str) -> list[Json]:
    """Read the rounds alone, without the rows of the devices; raises as `read_run` does."""
    folder = Path(folder)
    _read_header(folder)
    lines = _read_lines(folder)
    return _judged([_parse_line(folder, number, line)[0] for number, line in enumerate(lines, 1)])


def _judged(rounds: list[Json]) -> list[Json]:
    """Give each round the judgement of its model, where it came with the tasks of the next."""
    for record, following in pairwise(rounds):
        if record.get("validation") is None and following.get("validation_before") is not None:
            record["validation"] = following["validation_before"]
    return rounds


def flatten(record: Mapping[str, Any], prefix: str = "") -> Json:
    """Return a nested record as one row; `measured` and lists are left out.

    >>> flatten({"round": 1, "counts": {"ok": 4}, "measured": {"wall_s": 2.0}})
    {'round': 1, 'counts.ok': 4}
    """
    row: Json = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            row.update({} if key == "measured" else flatten(value, f"{prefix}{key}."))
        elif not isinstance(value, list | tuple):
            row[prefix + key] = value
    return row


def write_rounds_csv(rounds: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rounds as a flat table, one row each, `validation.loss` for a nested value."""
    rows = [flatten(_plain(record)) for record in rounds]
    names = list(dict.fromkeys(name for row in rows for name in row))
    # a round without validation holds null where others hold a block of columns
    names = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    write_csv(path, names, ([row.get(name) for name in names] for row in rows))


def _check_range(part: str, quality: object) -> None:
    fault = range_fault(quality) if isinstance(quality, Mapping) else None
    if fault:
        raise ValueError(f"{part}: {fault}")


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def _document(content: Mapping[str, Any]) -> str:
    return json.dumps(_plain(content), indent=1, ensure_ascii=False) + "\n"


def _checksum(record: Mapping[str, Any]) -> int:
    lasting = {key: value for key, value in record.items() if key != "measured"}
    return zlib.crc32(json.dumps(lasting, ensure_ascii=False).encode())


def _format_line(record: Mapping[str, Any], block: Mapping[str, int]) -> bytes:
    plain = {**_plain(record), "devices": dict(block)}
    plain["crc32"] = _checksum(plain)
    return json.dumps(plain, ensure_ascii=False).encode() + b"\n"


def _read_document(path: Path) -> Json:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} is not a run folder: it holds no {path.name}; give the folder that "
            "airtune run printed"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; restore it from a copy") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def _read_header(folder: Path) -> Json:
    header = _read_document(folder / "run.json")
    schema = header.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise CheckpointError(f"{folder / 'run.json'} must name its schema, got {schema!r}")
    if schema > SCHEMA:
        raise CheckpointError(
            f"{folder} was written with schema {schema}, this version reads up to {SCHEMA}; "
            "install a newer airtune"
        )
    for step in range(schema, SCHEMA):
        header = _UPGRADES[step](header)
    return header


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CheckpointError(f"{path} cannot be read ({reason}); restore it") from error


def _read_lines(folder: Path) -> list[bytes]:
    """Return the whole lines of `rounds.jsonl`; what follows the last line end was torn off."""
    return _read_file(folder / "rounds.jsonl").split(b"\n")[:-1]


def _parse_line(folder: Path, number: int, line: bytes) -> tuple[Json, dict[str, int]]:
    where = f"{folder / 'rounds.jsonl'}, line {number},"
    try:
        record = json.loads(line)
        stated = record.pop("crc32")
        found = _checksum(record)
        block: dict[str, int] = record.pop("devices")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{where} is damaged: it is not a round's record") from error
    if stated != found:
        raise CheckpointError(
            f"{where} is damaged: its checksum is {stated}, its content gives {found}"
        )
    return record, block


def _names_of(folder: Path, content: bytes) -> tuple[str, ...]:
    """Return the columns of a run's `devices.csv`."""
    names = names_in(content)
    if names is None:
        raise CheckpointError(
            f"{folder / 'devices.csv'}, line 1, is damaged: the names of the columns are not there"
        )
    return names


def _blocks(folder: Path, blocks: Sequence[Mapping[str, int]]) -> Iterator[Columns]:
    """Yield each round's rows of `devices.csv` as columns, after checking them."""
    path = folder / "devices.csv"
    whole = _read_file(path)
    content, names = memoryview(whole), _names_of(folder, whole)
    position, line = len(header_line(names)), 2
    for block in blocks:
        table = bytes(content[position : position + block["bytes"]])
        if zlib.crc32(table) != block["crc32"]:
            raise CheckpointError(
                f"{path} is damaged in the {block['rows']} lines from line {line} on: their "
                "checksum differs from the one in rounds.jsonl"
            )
        yield parse_rows(table, names)
        position += len(table)
        line += block["rows"]
