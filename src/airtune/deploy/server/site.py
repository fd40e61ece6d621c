"""A server's state folder: what the server was started with, and whether it runs."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airtune.deploy import DEFAULT_PORT, DEFAULT_STATE, PROBES
from airtune.deploy.caller import Proof, ServerClient
from airtune.deploy.server.authority import ServerFiles
from airtune.errors import ConnectionFailedError, DeploymentError
from airtune.records import storage

READY = "ready"
"""What a server's process says on its standard output once it serves."""
DRAINING = "draining"
"""A file in the folder of a server that takes no new run."""
_DOCUMENT, _LOCK = "server.json", "lock"
OF_THE_PROCESS = frozenset(
    {_DOCUMENT, _LOCK, DRAINING, "front.log", "supervisor.log", "devices.lock", "backup.json"}
)
"""Files of the folder that are of no use without the process that wrote them."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a server is started with."""

    state: Path = DEFAULT_STATE
    host: str = "0.0.0.0"
    """Address to listen on."""
    port: int = DEFAULT_PORT
    names: tuple[str, ...] = ()
    """Names and addresses under which devices call, beside localhost and this machine's own."""
    insecure: bool = False
    enrol_port: int = DEFAULT_PORT + 1
    """Port at which devices enrol themselves, open while a code is valid."""

    @property
    def own_host(self) -> str:
        """Where this machine itself reaches the server."""
        return "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host

    @property
    def address(self) -> str:
        """How this machine itself calls the server."""
        return f"{self.own_host}:{self.port}"

    @property
    def tls(self) -> ServerFiles:
        """Where the certificates are."""
        return ServerFiles(self.state / "tls")

    @property
    def probes(self) -> Path:
        """Where the probes of devices are kept."""
        return self.state / PROBES

    @property
    def document(self) -> Path:
        """Where a server that is ready says so."""
        return self.state / _DOCUMENT


@contextmanager
def holding(state: Path) -> Iterator[None]:
    """Hold a state folder: one server at a time; the system lets go of it when the process dies.

    Raises:
        DeploymentError: if a server runs from it already.
    """
    with storage(state):
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (state / _LOCK).open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DeploymentError(
                f"a server runs from {state} already (process {holder_of(state)}); stop it with "
                "airtune server stop"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def is_held(state: Path) -> bool:
    """Return whether a server runs from a state folder."""
    try:
        lock = (state / _LOCK).open("ab")
    except OSError:
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def holder_of(state: Path) -> int | None:
    """Return the process that runs, starts or ends a server from a state folder, None if none does."""
    if not is_held(state):
        return None
    text = (state / _LOCK).read_text(encoding="ascii")
    return int(text) if text.isdecimal() else None


def running(state: Path) -> ServerSettings:
    """Return the settings of the server that runs from a state folder.

    Raises:
        ConnectionFailedError: if none does.
    """
    document = read_document(state)
    if document is None or not is_held(state):
        raise ConnectionFailedError(
            f"no server runs from {state}; start one with airtune server start --state {state}"
        )
    said = document["settings"]
    return ServerSettings(
        state=state,
        host=said["host"],
        port=said["port"],
        names=tuple(said["names"]),
        insecure=said["insecure"],
        enrol_port=said["enrol_port"],
    )


def read_document(state: Path) -> dict[str, Any] | None:
    """Return what the server has written of itself, None where it never ran or ended."""
    try:
        found = json.loads((state / _DOCUMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def local_link(settings: ServerSettings) -> ServerClient:
    """Return how commands on the server's own machine reach it."""
    tls = settings.tls
    if settings.insecure:
        return ServerClient(settings.address, None)
    return ServerClient(
        settings.address, Proof(tls.authority, tls.local_key, tls.local_certificate)
    )
