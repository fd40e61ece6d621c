"""A base model comes whole or not at all, whatever happens on the way."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from airtune.errors import CodecError, ConnectionFailedError, MismatchError, StorageError
from airtune.wire import stage
from airtune.wire.contents import contents_of
from airtune.wire.stage import (
    CHUNK_BYTES,
    BaseFile,
    BusyError,
    is_base_file,
    open_chunk,
    pack_chunk,
    stage_base,
    staged,
)

NAME = "a" * 64
NUMBERS = os.urandom(3 * CHUNK_BYTES)
HEADER = json.dumps({
    "__metadata__": {"format": "pt"},
    "weight": {"dtype": "U8", "shape": [len(NUMBERS)], "data_offsets": [0, len(NUMBERS)]},
}).encode()  # fmt: skip
HEADER += b" " * (-len(HEADER) % 8)
WEIGHTS = len(HEADER).to_bytes(8, "little") + HEADER + NUMBERS


def base_files(folder: Path) -> tuple[BaseFile, ...]:
    return tuple(file.described() for file in contents_of(folder, lambda name: "all"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "tokenizer.json").write_bytes(b"")
    (folder / "pytorch_model.bin").write_bytes(b"never handed out")
    return folder


def serving(folder, files, *, bend=lambda number, offset, chunk: chunk):
    """Return what hands files out, and the list of what it was asked."""
    asked = []

    def ask(number, offset):
        asked.append((files[number].name, offset))
        content = (folder / files[number].name).read_bytes()
        while offset < len(content):
            piece = content[offset : offset + CHUNK_BYTES]
            yield bend(number, offset, pack_chunk(offset, piece))
            offset += len(piece)

    return ask, asked


def patient(seconds: float) -> None:
    """Wait for nothing."""


def test_a_base_comes_as_it_is_and_is_asked_for_once(source: Path, tmp_path: Path) -> None:
    files = base_files(source)
    ask, asked = serving(source, files)
    folder = stage_base(tmp_path / "cache", NAME, files, ask)
    assert folder == staged(tmp_path / "cache", NAME)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    before = len(asked)
    assert stage_base(tmp_path / "cache", NAME, files, ask) == folder
    assert len(asked) == before


def test_what_was_staged_and_is_other_now_is_fetched_anew_and_nothing_else(
    source: Path, tmp_path: Path
) -> None:
    folder = stage_base(
        tmp_path / "cache", NAME, files := base_files(source), serving(source, files)[0]
    )
    (folder / "model.safetensors").write_bytes(b"x" * len(WEIGHTS))
    (source / "tokenizer.json").write_bytes(b"another")
    files = base_files(source)
    ask, asked = serving(source, files)
    assert stage_base(tmp_path / "cache", NAME, files, ask, sleep=patient) == folder
    assert sorted(asked) == [("model.safetensors", 0), ("tokenizer.json", 0)]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "tokenizer.json").read_bytes() == b"another"


def test_a_broken_connection_goes_on_where_it_stopped(source: Path, tmp_path: Path) -> None:
    files = base_files(source)
    place, broken = [file.name for file in files].index("model.safetensors"), []

    def bend(number, offset, chunk):
        if number == place and offset == 2 * CHUNK_BYTES and not broken:
            broken.append(offset)
            raise ConnectionFailedError("cut")
        return chunk

    ask, asked = serving(source, files, bend=bend)
    stage_base(tmp_path / "cache", NAME, files, ask, sleep=patient)
    assert [at for name, at in asked if name == "model.safetensors"] == [0, 2 * CHUNK_BYTES]


@pytest.mark.parametrize(
    ("fault", "is_waited_for"), [(ConnectionFailedError, False), (BusyError, True)]
)
def test_a_server_that_is_away_is_asked_for_a_time_a_busy_one_until_it_is_free(
    source, tmp_path, monkeypatch, fault, is_waited_for
) -> None:
    files, now, asked = base_files(source), [0.0], []
    whole, _ = serving(source, files)
    monkeypatch.setattr(stage.time, "monotonic", lambda: now[0])

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def ask(number, offset):
        asked.append(now[0])
        if now[0] < 300.0:
            raise fault("not now")
        return whole(number, offset)

    def fetch(wait_s):
        return stage_base(tmp_path / "cache", NAME, files, ask, wait_s=wait_s, sleep=sleep)

    if is_waited_for:
        assert fetch(100.0).is_dir()
        return
    with pytest.raises(ConnectionFailedError, match="not now"):
        fetch(100.0)
    assert 100.0 < now[0] < 125.0
    assert fetch(400.0).is_dir()


@pytest.mark.parametrize(
    "harm",
    [
        lambda chunk: chunk[:-1] + bytes([chunk[-1] ^ 1]),
        lambda chunk: chunk[:-1],
        lambda chunk: chunk[:3],
        lambda chunk: pack_chunk(1, chunk[40:]),
        lambda chunk: pack_chunk(0, chunk[40:] + b"more"),
    ],
)
def test_a_damaged_chunk_is_refused_and_asked_again(source, tmp_path, harm) -> None:
    files = base_files(source)
    harmed = []

    def bend(number, offset, chunk):
        if len(harmed) < 3:
            harmed.append(number)
            return harm(chunk)
        return chunk

    ask, asked = serving(source, files, bend=bend)
    folder = stage_base(tmp_path / "cache", NAME, files, ask, sleep=patient)
    assert len(asked) > len(files)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_what_stays_damaged_is_given_up_and_kept_out(source: Path, tmp_path: Path) -> None:
    files = base_files(source)
    ask, asked = serving(source, files, bend=lambda number, offset, chunk: chunk[:-1] + b"?")
    with pytest.raises(ConnectionFailedError, match="is damaged"):
        stage_base(tmp_path / "cache", NAME, files, ask, sleep=patient)
    assert staged(tmp_path / "cache", NAME) is None
    assert len(asked) == stage._TRIES


def test_a_file_that_is_not_what_its_hash_says_is_fetched_anew_then_refused(
    source: Path, tmp_path: Path
) -> None:
    files = base_files(source)
    ask, asked = serving(source, files)
    (source / "model.safetensors").write_bytes(bytes(len(WEIGHTS)))
    with pytest.raises(CodecError, match="is not what its checksum says"):
        stage_base(tmp_path / "cache", NAME, files, ask, sleep=patient)
    assert [at for name, at in asked if name == "model.safetensors"] == [0, 0]
    assert staged(tmp_path / "cache", NAME) is None


def test_what_was_damaged_on_the_disk_is_fetched_anew(source: Path, tmp_path: Path) -> None:
    files = base_files(source)
    partial = tmp_path / "cache" / f".{NAME}.partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"x" * CHUNK_BYTES)
    (partial / "stranger").write_bytes(b"x")
    ask, _ = serving(source, files)
    folder = stage_base(tmp_path / "cache", NAME, files, ask, sleep=patient)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert not (folder / "stranger").exists()


@pytest.mark.parametrize(
    "name",
    [
        "../config.json",
        "/etc/passwd",
        "sub/config.json",
        "config.json/..",
        "modeling.py",
        "",
        "pytorch_model.bin",
        "model-1-of-2.safetensors",
        "config.json\n",
        ".",
    ],
)
def test_a_name_that_is_no_file_of_a_base_is_refused(tmp_path: Path, name: str) -> None:
    assert not is_base_file(name)
    ask, asked = serving(tmp_path, ())
    with pytest.raises(MismatchError, match="no file of a base model"):
        stage_base(tmp_path / "cache", NAME, [BaseFile(name, 1, "0" * 64)], ask)
    assert not asked


@pytest.mark.parametrize("fingerprint", ["", "../" + "a" * 61, "A" * 64, "a" * 63])
def test_a_fingerprint_that_is_none_is_no_folder(tmp_path: Path, fingerprint: str) -> None:
    with pytest.raises(MismatchError, match="no fingerprint"):
        stage_base(tmp_path, fingerprint, [BaseFile("config.json", 0, "0" * 64)], serving)


@pytest.mark.parametrize(
    "file", [BaseFile("config.json", -1, "0" * 64), BaseFile("config.json", 1, "0" * 63)]
)
def test_an_offer_without_size_or_hash_is_refused(tmp_path: Path, file: BaseFile) -> None:
    with pytest.raises(MismatchError, match="the offer is refused"):
        stage_base(tmp_path, NAME, [file], serving)


def test_a_disk_without_room_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    ask, asked = serving(tmp_path, ())
    with pytest.raises(StorageError, match="no room for the base model"):
        stage_base(tmp_path, NAME, [BaseFile("model.safetensors", 1 << 60, "0" * 64)], ask)
    assert not asked


def test_a_disk_that_fills_up_is_one_sentence_and_what_came_stays(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = base_files(source)
    ask, asked = serving(source, files)
    really, written = os.write, []

    def full(descriptor, content):
        written.append(len(content))
        if sum(written) > 2 * CHUNK_BYTES:
            raise OSError(errno.ENOSPC, "No space left on device")
        return really(descriptor, content)

    monkeypatch.setattr(stage.os, "write", full)
    with pytest.raises(StorageError, match="the disk is full"):
        stage_base(tmp_path / "cache", NAME, files, ask, sleep=patient)
    monkeypatch.setattr(stage.os, "write", really)
    asked.clear()
    folder = stage_base(tmp_path / "cache", NAME, files, ask)
    assert ("model.safetensors", CHUNK_BYTES) in asked
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_chunk_holds_what_its_hash_says() -> None:
    assert open_chunk(pack_chunk(5, b"abc"), 5, left_bytes=3) == b"abc"
    with pytest.raises(CodecError):
        open_chunk(pack_chunk(5, b"abc"), 5, left_bytes=2)


def test_plans_need_no_locks_that_only_some_systems_have() -> None:
    program = "import sys; sys.modules['fcntl'] = None; import airtune.planner.extra"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


SLOW = """
    import sys, time
    from pathlib import Path
    from airtune.wire.contents import contents_of
    from airtune.wire.stage import CHUNK_BYTES, pack_chunk, stage_base

    source, cache = map(Path, sys.argv[1:])
    files = [file.described() for file in contents_of(source, lambda name: "all")]

    def ask(number, offset):
        content = (source / files[number].name).read_bytes()
        while offset < len(content):
            piece = content[offset : offset + CHUNK_BYTES]
            yield pack_chunk(offset, piece)
            offset += len(piece)
            if files[number].name == "model.safetensors" and offset >= 2 * CHUNK_BYTES:
                print("half", flush=True)
                time.sleep(60)

    stage_base(cache, "a" * 64, files, ask)
"""


def test_after_a_kill_a_half_fetched_file_goes_on(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    program = [sys.executable, "-c", textwrap.dedent(SLOW), str(source), str(cache)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "half\n"
        time.sleep(0.1)
        process.kill()
    assert staged(cache, NAME) is None
    files = base_files(source)
    ask, asked = serving(source, files)
    folder = stage_base(cache, NAME, files, ask)
    assert [at for name, at in asked if name == "model.safetensors"] == [2 * CHUNK_BYTES]
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest == hashlib.sha256(WEIGHTS).hexdigest()
