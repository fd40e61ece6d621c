"""Backup and restore of a server's folder, also while it runs.

A backup is a tar file. It begins with `backup.json`, which says of what it is; then come the runs,
each with its checkpoints before its records, so that what is restored can go on wherever the copy was
cut; the rest, and the register and certificates under the locks by which they are written.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import stat
import tarfile
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from airtune.deploy.server.authority import TLS_LOCK
from airtune.deploy.server.register import REGISTER, lock_of
from airtune.deploy.server.site import OF_THE_PROCESS
from airtune.errors import DeploymentError, RunExistsError
from airtune.records import storage
from airtune.wire.message import VERSION

_DOCUMENT, _SCHEMA = "backup.json", 1
_RUN_FIRST = ("checkpoint", "run.json", "rounds.jsonl", "devices.csv")
"""Of a run: what must not be newer than what follows it."""
_TRIES, _LONGEST_BYTES = 5, 1 << 20


def back_up(state: Path, target: Path, *, keys: bool) -> int:
    """Copy a server's folder to a tar file that its owner alone may read; returns how many files.

    Args:
        state: the server's folder.
        target: the file to write.
        keys: whether private keys are copied; without them the server's own must be kept elsewhere.

    Raises:
        DeploymentError: if there is no server's folder.
        RunExistsError: if the file is there already.
        StorageError: if it cannot be written; nothing is left then.
    """
    if not (state / REGISTER).is_file() and not (state / "tls").is_dir():
        raise DeploymentError(f"{state} is no folder of a server; name one with --state")
    if target.exists():
        raise RunExistsError(f"{target} is there already; choose another name")
    partial = target.with_name(f".{target.name}.partial")
    with storage(target):
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                count = _write(state, file, keys=keys, skip={target.resolve(), partial.resolve()})
                file.flush()
                os.fsync(file.fileno())
            partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)
    return count


def restore(source: Path, state: Path) -> dict[str, Any]:
    """Put a backup where there is no server's folder yet; returns what it says of itself.

    Raises:
        RunExistsError: if the folder is there already.
        DeploymentError: if the file is no backup, is damaged, or holds what no backup does.
        StorageError: if the folder cannot be written; nothing is left then.
    """
    if state.exists() and (not state.is_dir() or any(state.iterdir())):
        raise RunExistsError(f"{state} is there already; restore to a folder that is not")
    partial = state.with_name(f".{state.name}.partial")
    with storage(state):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, mode=0o700)
        try:
            said = _read(source, partial)
            if state.is_dir():
                state.rmdir()
            partial.rename(state)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return said


def _write(state: Path, file: Any, *, keys: bool, skip: set[Path]) -> int:
    said = {
        "schema": _SCHEMA,
        "version": VERSION,
        "keys": keys,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    count = 0
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as tar:
        _add(tar, _DOCUMENT, json.dumps(said).encode(), 0o600)
        for folder in sorted(path for path in (state / "runs").glob("*") if path.is_dir()):
            count += _add_run(tar, state, folder)
        with _still(state):
            for path in sorted(state.iterdir()):
                if path.name == "runs" or path.name in OF_THE_PROCESS:
                    continue
                for one in _below(path):
                    is_wanted = keys or one.suffix != ".key"
                    if is_wanted and one.resolve() not in skip:
                        count += _add_file(tar, state, one)
    return count


@contextmanager
def _still(state: Path) -> Iterator[None]:
    """Keep register and certificates as they are."""
    with ExitStack() as held:
        for path in (lock_of(state), state / "tls" / TLS_LOCK):
            if path.parent.is_dir():
                held.enter_context(FileLock(path))
        yield


def _add_run(tar: tarfile.TarFile, state: Path, folder: Path) -> int:
    """Add a run: whole checkpoints first, then its records."""
    count = _add_file(tar, state, folder)
    for _ in range(_TRIES):  # the run may remove old ones at this moment
        whole = [
            files
            for path in sorted((folder / "checkpoint").glob("round-*"))
            if (files := _read_whole(path))
        ]
        if whole or not (folder / "checkpoint").is_dir():
            break
    for files in whole:
        for path, (mode, content) in files.items():
            _add(tar, str(path.relative_to(state)), content, mode)
            count += 1
    first = [folder / name for name in _RUN_FIRST]
    rest = [
        path
        for path in _below(folder)
        if path not in (folder, *first) and "checkpoint" not in path.relative_to(folder).parts
    ]
    return count + sum(_add_file(tar, state, path) for path in (*first, *rest))


def _read_whole(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Return modes and contents of a checkpoint's files, none where one has gone meanwhile."""
    try:
        return {
            path: (stat.S_IMODE(path.stat().st_mode), path.read_bytes())
            for path in sorted(folder.iterdir())
        }
    except FileNotFoundError:
        return {}


def _below(path: Path) -> Iterator[Path]:
    """Yield a path and all below it, folders before what they hold; links and locks are left."""
    if path.is_symlink() or path.suffix in (".partial", ".lock") or path.name == TLS_LOCK:
        return
    yield path
    if path.is_dir():
        with suppress(FileNotFoundError):  # it was removed meanwhile
            for one in sorted(path.iterdir()):
                yield from _below(one)


def _add_file(tar: tarfile.TarFile, state: Path, path: Path) -> int:
    """Add a file as it is now, or a folder; returns 0 where there is none any more."""
    name = str(path.relative_to(state))
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, stat.S_IMODE(found.st_mode)
            tar.addfile(member)
        elif stat.S_ISREG(found.st_mode):
            _add(tar, name, path.read_bytes(), stat.S_IMODE(found.st_mode))
            return 1
    except FileNotFoundError:
        pass
    return 0


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(content), mode, int(time.time())
    tar.addfile(member, io.BytesIO(content))


def _read(source: Path, folder: Path) -> dict[str, Any]:
    """Unpack a backup; returns what it says of itself."""
    try:
        with tarfile.open(source, mode="r:gz") as tar:
            first = tar.next()
            content = tar.extractfile(first) if first and first.name == _DOCUMENT else None
            said = json.loads(content.read(_LONGEST_BYTES)) if content else {}
            if said.get("schema") != _SCHEMA:
                raise DeploymentError(
                    f"{source} is no backup of a server that this version ({VERSION}) reads: it is "
                    f"of schema {said.get('schema')}, {_SCHEMA} is read"
                )
            for member in tar:
                _unpack(tar, member, folder)
    except (OSError, EOFError, tarfile.TarError, ValueError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DeploymentError(
            f"{source} is no whole backup ({error}); nothing was restored"
        ) from error
    return dict(said)


def _unpack(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write a plain file or a folder that is inside the folder, with the mode that it had.

    Written out, as the filters of tarfile are not in every Python 3.11.

    Raises:
        tarfile.ExtractError: for anything else.
    """
    target = (folder / member.name).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise tarfile.ExtractError(f"{member.name!r} would be written outside the folder")
    content = tar.extractfile(member) if member.isreg() else None
    if content is None and not member.isdir():
        raise tarfile.ExtractError(f"{member.name!r} is neither a file nor a folder")
    made = target if content is None else target.parent
    made.mkdir(parents=True, exist_ok=True)
    if content is not None:
        with target.open("wb") as file:
            shutil.copyfileobj(content, file)
    target.chmod(member.mode & 0o755 | (0o700 if content is None else 0o600))
