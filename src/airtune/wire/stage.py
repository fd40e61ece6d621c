"""A base model, or a part of it, on its way to a device: its files, and how far they have come.

    FINGERPRINT/             whole, or the groups of its tensors that were asked for; moved here at
                             once when every file is what it must be, and looked at again before use
    .FINGERPRINT.partial/    half-fetched; the next attempt goes on where each file ends

A server says names, sizes and SHA-256 of the files by the channel that tasks come by; they are then
asked for by number, and come in chunks with a hash each. A damaged chunk is asked for again, a file
whose whole hash is wrong is fetched anew, once. Names come from a fixed list and never hold a
folder, so nothing that was received is ever a path.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from airtune.errors import CodecError, ConnectionFailedError, MismatchError, StorageError
from airtune.records import storage
from airtune.units import format_bytes

NAMES = frozenset({
    "config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "chat_template.jinja", "preprocessor_config.json",
})  # fmt: skip
"""All files of a base that are ever handed out, beside the shards of its weights."""
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_HASH = re.compile(r"[0-9a-f]{64}")
MAX_FILES = 1024
CHUNK_BYTES = 512 << 10
"""Most bytes of a file in one chunk."""
_HEAD = struct.Struct("<Q32s")
WAIT_S = 1800.0
"""How long a device asks a server that cannot be reached, where the offer says nothing else."""
_TRIES = 8
"""Damaged chunks in a row after which it is given up."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 20.0

Ask = Callable[[int, int], Iterator[bytes]]
"""(number of a file, offset in bytes) -> chunks as they come, from there to the file's end."""


class BusyError(ConnectionFailedError):
    """The server is there and hands out to as many as it can; a place will be free."""


@dataclass(frozen=True, slots=True)
class BaseFile:
    """One file of a base model."""

    name: str
    size_bytes: int
    sha256: str
    group: str = ""
    """Of the tensors it holds (`airtune.model.part`); "" = it goes with every part."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Where a device finds the base model, and what lets it in."""

    address: str
    """HOST:PORT, or :PORT of the server that the device knows."""
    token: str
    files: tuple[BaseFile, ...]
    wait_s: float = WAIT_S
    """How long a device that cannot reach the server goes on asking after the last byte."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)


def is_base_file(name: str) -> bool:
    """Return whether a file of this name may be handed out, and taken.

    >>> is_base_file("model-00001-of-00002.safetensors"), is_base_file("../config.json")
    (True, False)
    """
    return name in NAMES or _SHARD.fullmatch(name) is not None


def pack_chunk(offset: int, content: bytes) -> bytes:
    """Return a chunk as it travels: where it belongs, the hash of what it holds, and that."""
    return _HEAD.pack(offset, hashlib.sha256(content).digest()) + content


def open_chunk(chunk: bytes, offset: int, *, left_bytes: int) -> bytes:
    """Return what a chunk holds.

    Args:
        chunk: as received.
        offset: where the file has ended so far.
        left_bytes: what is missing of it.

    Raises:
        CodecError: if it is damaged, belongs elsewhere or holds too much.
    """
    content = chunk[_HEAD.size :]
    if not content or len(content) > min(CHUNK_BYTES, left_bytes):
        raise CodecError(
            f"a chunk holds {len(content)} bytes, at most {min(CHUNK_BYTES, left_bytes)} are taken"
        )
    place, digest = _HEAD.unpack_from(chunk)
    if place != offset or hashlib.sha256(content).digest() != digest:
        raise CodecError(f"the chunk at byte {offset} is damaged; it is asked for again")
    return content


def staged(root: Path, fingerprint: str) -> Path | None:
    """Return the folder of a base that was staged before, None where there is none."""
    folder = root / _folder_name(fingerprint)
    return folder if folder.is_dir() else None


def stage_base(
    root: Path,
    fingerprint: str,
    files: Sequence[BaseFile],
    ask: Ask,
    *,
    groups: frozenset[str] | None = None,
    wait_s: float = WAIT_S,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Fetch a base, or what is missing of it; return its folder.

    What was fetched before is read again: files that a disk has damaged, or the server changed
    since, are fetched anew and the others kept.

    Args:
        root: where bases are kept; one process at a time fetches into it.
        fingerprint: of the base's weights, which names its folder.
        files: what the server has said; nothing in it is trusted.
        ask: fetches.
        groups: of tensors that are needed; None = all. Others that are there stay.
        wait_s: how long a server that cannot be reached is asked again; one that says it is busy
            is there, and is waited for.
        sleep: waits between attempts.

    Raises:
        MismatchError: if a name, size or hash is not one of a base's files, or the server refuses.
        CodecError: if a file is not what its hash says, twice.
        ConnectionFailedError: if nothing more comes.
        StorageError: if the disk is full; what has come stays, and the next attempt goes on.
    """
    _check_files(files)
    wanted = needed_files(files, groups)
    target = root / _folder_name(fingerprint)
    partial = root / f".{target.name}.partial"
    with storage(root):
        root.mkdir(parents=True, exist_ok=True)
    with _alone(root):
        if target.is_dir():
            if _is_as_offered(target, files, wanted):
                return target
            _take_back(target, partial)
        with storage(partial):
            partial.mkdir(exist_ok=True)
            for stranger in {path.name for path in partial.iterdir()} - {f.name for f in files}:
                (partial / stranger).unlink()
        _check_room(partial, wanted)
        for file in wanted:
            _fetch(partial / file.name, files.index(file), file, ask, _Patience(wait_s, sleep))
        with storage(target):
            partial.rename(target)
            _force(root)
    return target


def needed_files(files: Sequence[BaseFile], groups: frozenset[str] | None) -> tuple[BaseFile, ...]:
    """Return the files of some groups of tensors, and those that go with every part."""
    return tuple(file for file in files if groups is None or file.group in {"", *groups})


def _is_as_offered(folder: Path, files: Sequence[BaseFile], wanted: Sequence[BaseFile]) -> bool:
    there = {path.name for path in folder.iterdir()}
    return {file.name for file in wanted} <= there <= {file.name for file in files} and all(
        (folder / file.name).stat().st_size == file.size_bytes
        and _hash_of(folder / file.name) == file.sha256
        for file in wanted
    )


def _take_back(target: Path, partial: Path) -> None:
    """Make a base that is there a half-fetched one, of which files that are right stay."""
    with storage(target):
        if partial.is_dir():
            shutil.rmtree(partial)
        target.rename(partial)


class _Patience:
    """How long attempts go on that bring no new byte: by their faults, each waits longer."""

    def __init__(self, wait_s: float, sleep: Callable[[float], None]) -> None:
        self._wait_s, self._sleep = wait_s, sleep
        self.renew()

    def renew(self) -> None:
        """Begin anew: a byte has come."""
        self._damaged, self._pause_s, self._since_s = 0, _FIRST_PAUSE_S, time.monotonic()

    def holds(self, fault: Exception) -> bool:
        """Wait, and return whether to ask again."""
        if isinstance(fault, BusyError):
            self._since_s = time.monotonic()
        self._damaged += isinstance(fault, CodecError)
        if self._damaged == _TRIES or time.monotonic() - self._since_s > self._wait_s:
            return False
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._sleep(self._pause_s)
        return True


def _fetch(path: Path, number: int, file: BaseFile, ask: Ask, patience: _Patience) -> None:
    """Bring one file to its end."""
    for _ in range(2):
        with storage(path):
            if path.exists() and path.stat().st_size > file.size_bytes:
                path.unlink()
            path.touch()
        if path.stat().st_size < file.size_bytes:
            _fill(path, number, file, ask, patience)
        if _hash_of(path) == file.sha256:
            return
        path.unlink()
    raise CodecError(
        f"{file.name} came twice and is not what its checksum says; has it changed at the server "
        "since the run began?"
    )


def _fill(path: Path, number: int, file: BaseFile, ask: Ask, patience: _Patience) -> None:
    """Ask for what is missing until all has come."""
    with path.open("ab", buffering=0) as out:
        come = out.tell()
        while come < file.size_bytes:
            before = come
            fault: Exception = ConnectionFailedError("the server ended the file before its end")
            try:
                for chunk in ask(number, come):
                    content = open_chunk(chunk, come, left_bytes=file.size_bytes - come)
                    with storage(path):
                        _write(out.fileno(), content)
                    come += len(content)
            except (CodecError, ConnectionFailedError) as error:
                fault = error
            if come == file.size_bytes:
                break
            if come > before:
                patience.renew()
            if not patience.holds(fault):
                raise ConnectionFailedError(
                    f"the base model does not come: {fault}; {format_bytes(come)} of {file.name} "
                    "are kept, and the next attempt goes on from there"
                ) from fault
        with storage(path):
            os.fsync(out.fileno())


def _write(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _check_files(files: Sequence[BaseFile]) -> None:
    names = [file.name for file in files]
    for file in files:
        if not is_base_file(file.name) or names.count(file.name) > 1:
            raise MismatchError(f"{file.name!r} is no file of a base model; the offer is refused")
        if file.size_bytes < 0 or not _HASH.fullmatch(file.sha256):
            raise MismatchError(
                f"the server says {file.size_bytes} bytes and hash {file.sha256[:80]!r} of "
                f"{file.name}; the offer is refused"
            )
    if not 0 < len(files) <= MAX_FILES:
        raise MismatchError(f"a base has 1 to {MAX_FILES} files, {len(files)} are offered")


def _folder_name(fingerprint: str) -> str:
    if not _HASH.fullmatch(fingerprint):
        raise MismatchError(f"{fingerprint[:80]!r} is no fingerprint of a model; it is refused")
    return fingerprint


def _check_room(partial: Path, files: Sequence[BaseFile]) -> None:
    """Refuse before anything is fetched that the disk cannot hold."""
    there = {path.name: path.stat().st_size for path in partial.iterdir()}
    missing = sum(max(file.size_bytes - there.get(file.name, 0), 0) for file in files)
    free = shutil.disk_usage(partial).free
    if missing > free:
        raise StorageError(
            f"the disk has no room for the base model: {format_bytes(missing)} are to come and "
            f"{format_bytes(free)} are free at {partial.parent}; free some space, or give the agent "
            "another --cache"
        )


def _hash_of(path: Path) -> str:
    with storage(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keep others out of a cache; the system lets go of it when the process dies."""
    import fcntl  # where there is none, no base is ever fetched

    with storage(root):
        lock = (root / ".lock").open("ab")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _force(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
