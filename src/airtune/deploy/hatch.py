"""The way from Flower's short-lived client process to the agent's long-lived worker.

A unix socket that only its owner can open, and a random token that both ends prove to hold (HMAC,
by `multiprocessing.connection`). What passes are bytes in frames; nothing is ever unpickled. Imports
no torch: a client process lives for one message.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

from airtune.engine.envelope import Envelope
from airtune.errors import AirtuneError, ConnectionFailedError

MAX_FRAME_BYTES = 2 << 30
MAX_FRAMES = 65
_DONE, _FAULT = b"done", b"fault"
RETRY_S = 0.2


def new_token(path: Path) -> bytes:
    """Write a new token for its owner alone, and return it."""
    token = secrets.token_hex(32).encode()
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(token)
    return token


def serve(path: Path, token: bytes, handle: Callable[[Envelope], Envelope]) -> None:
    """Answer messages one after the other, for ever.

    An error that airtune names is sent back as its sentence; any other ends the worker, which its
    supervisor starts again.

    Args:
        path: of the socket; an old one is replaced.
        token: that callers must hold.
        handle: makes an answer of a message.
    """
    path.unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        listener = Listener(str(path), family="AF_UNIX", backlog=8, authkey=token)
    finally:
        os.umask(mask)
    with listener:
        while True:
            try:
                connection = listener.accept()
            except (AuthenticationError, EOFError, OSError):
                continue  # a caller without the token, or one that left
            with connection:
                _answer(connection, handle)


def ask(path: Path, token: bytes, message: Envelope, *, wait_s: float) -> Envelope:
    """Hand a message to the worker and return its answer.

    Args:
        path: of the socket.
        token: that the worker expects.
        message: what to hand over.
        wait_s: how long the worker may take to be there; it may be starting.

    Raises:
        ConnectionFailedError: if it is not there, ends while it works, or says why it cannot.
    """
    with _connect(path, token, wait_s) as connection:
        try:
            _send(connection, message)
            kind = connection.recv_bytes(16)
            if kind == _FAULT:
                text = connection.recv_bytes(1 << 20).decode("utf-8", "replace")
                raise ConnectionFailedError(text)
            return _receive(connection)
        except (EOFError, OSError) as error:
            if isinstance(error, ConnectionFailedError):
                raise
            raise ConnectionFailedError(
                "the agent's worker ended while it worked on this; its log says why (memory, most "
                "often)"
            ) from error


def _connect(path: Path, token: bytes, wait_s: float) -> Connection:
    until = time.monotonic() + wait_s
    while True:
        try:
            return Client(str(path), family="AF_UNIX", authkey=token)
        except AuthenticationError as error:
            raise ConnectionFailedError(
                "the agent's worker refused the token; restart the agent"
            ) from error
        except OSError as error:
            if time.monotonic() >= until:
                raise ConnectionFailedError(
                    f"the agent's worker is not there ({error.strerror or error}); its log says why"
                ) from error
            time.sleep(RETRY_S)


def _answer(connection: Connection, handle: Callable[[Envelope], Envelope]) -> None:
    try:
        message = _receive(connection)
    except (EOFError, OSError, ValueError):
        return  # the caller left before it had said everything
    try:
        reply = handle(message)
    except AirtuneError as error:
        _say(connection, [_FAULT, str(error).encode()])
        return
    _say(connection, [_DONE, *_frames(reply)])


def _say(connection: Connection, frames: list[bytes]) -> None:
    try:
        for frame in frames:
            connection.send_bytes(frame)
    except OSError:
        return  # the caller left; the server will see that nothing came


def _frames(message: Envelope) -> list[bytes]:
    return [len(message.blobs).to_bytes(2, "little"), message.header, *message.blobs]


def _send(connection: Connection, message: Envelope) -> None:
    for frame in _frames(message):
        connection.send_bytes(frame)


def _receive(connection: Connection) -> Envelope:
    count = int.from_bytes(connection.recv_bytes(2), "little")
    if count > MAX_FRAMES:
        raise ValueError(f"{count} frames are too many")
    header = connection.recv_bytes(MAX_FRAME_BYTES)
    return Envelope(header, tuple(connection.recv_bytes(MAX_FRAME_BYTES) for _ in range(count)))
