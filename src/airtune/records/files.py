"""Files written whole or not at all, and the operating system's refusals as one error."""

from __future__ import annotations

import csv
import errno
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from airtune.errors import CheckpointError, RunExistsError, StorageError


def write_csv(path: Path, names: Sequence[str], rows: Iterator[Sequence[Any]]) -> None:
    """Write a table with a header line at once; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file by new content, whole or not at all; its folder is made if need be.

    Raises:
        StorageError: if the disk is full or the path cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.partial")
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into a StorageError."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"the disk is full, {path} was not written; free some space and resume"
        else:
            reason = error.strerror or str(error)
            message = f"{path} cannot be written ({reason.lower()}); choose another output folder"
        raise StorageError(message) from error


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder of records, so that no other process writes them meanwhile.

    The system lets go of it however the process ends. Nothing is held on Windows, nor on a file
    system that cannot lock a folder.

    Raises:
        RunExistsError: if another process holds it.
        CheckpointError: if it is not there.
    """
    if sys.platform == "win32":
        yield
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise CheckpointError(f"{folder} is no folder that can be read") from error
    try:
        if _is_held(descriptor):
            raise RunExistsError(
                f"another process is at work in {folder}; wait until it has ended, or stop it"
            )
        yield
    finally:
        os.close(descriptor)


def _is_held(descriptor: int) -> bool:
    """Take the lock of an open folder; returns whether another has it."""
    import fcntl  # only where there is one; see `held`

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # of a file system without such locks
        return False
    return False


def add(path: Path, data: bytes, position: int) -> None:
    """Write to a file from a position on, which becomes its new end, and wait for the disk."""
    with storage(path), path.open("r+b") as file:
        file.seek(position)
        file.write(data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def cut(path: Path, length: int) -> None:
    """Shorten a file to its first `length` bytes."""
    with storage(path):
        os.truncate(path, length)
