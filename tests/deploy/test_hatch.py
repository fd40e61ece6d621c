"""The way to the worker lets in who holds the token, and survives who leaves."""

import os
import stat
import threading
from multiprocessing.connection import Client
from pathlib import Path

import pytest

from airtune.deploy.hatch import ask, new_token, serve
from airtune.engine.envelope import Envelope
from airtune.errors import ConnectionFailedError, MismatchError


def _handle(message: Envelope) -> Envelope:
    if message.header == b"refuse":
        raise MismatchError("another version")
    return Envelope(message.header[::-1], message.blobs)


@pytest.fixture
def worker(tmp_path: Path) -> tuple[Path, bytes]:
    token = new_token(tmp_path / "token")
    path = tmp_path / "hatch"
    threading.Thread(target=serve, args=(path, token, _handle), daemon=True).start()
    return path, token


def test_a_message_and_its_answer(worker: tuple[Path, bytes]) -> None:
    blobs = (b"", os.urandom(3_000_000))
    assert ask(*worker, Envelope(b"abc", blobs), wait_s=5) == Envelope(b"cba", blobs)


def test_a_refusal_is_told(worker: tuple[Path, bytes]) -> None:
    with pytest.raises(ConnectionFailedError, match="another version"):
        ask(*worker, Envelope(b"refuse"), wait_s=5)


def test_a_wrong_token_is_refused_and_the_worker_goes_on(worker: tuple[Path, bytes]) -> None:
    path, token = worker
    ask(path, token, Envelope(b"abc"), wait_s=5)
    with pytest.raises(ConnectionFailedError, match="refused the token"):
        ask(path, b"wrong", Envelope(b"abc"), wait_s=5)
    assert ask(path, token, Envelope(b"abc"), wait_s=5).header == b"cba"


def test_a_caller_that_leaves_early_harms_nobody(worker: tuple[Path, bytes]) -> None:
    path, token = worker
    ask(path, token, Envelope(b"abc"), wait_s=5)
    with Client(str(path), family="AF_UNIX", authkey=token) as early:
        early.send_bytes((3).to_bytes(2, "little"))
    assert ask(path, token, Envelope(b"abc"), wait_s=5).header == b"cba"


def test_only_the_owner_can_open_it(worker: tuple[Path, bytes]) -> None:
    path, token = worker
    ask(path, token, Envelope(b"abc"), wait_s=5)
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert stat.S_IMODE((path.parent / "token").stat().st_mode) == 0o600


def test_no_worker_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(ConnectionFailedError, match="worker is not there"):
        ask(tmp_path / "none", b"t", Envelope(b"abc"), wait_s=0.3)
