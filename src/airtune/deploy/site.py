"""A server's state folder: what the server was started with, and whether it runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airtune.deploy import DEFAULT_PORT, DEFAULT_STATE
from airtune.deploy.flower_cli import Link
from airtune.deploy.keys import ServerFiles
from airtune.deploy.processes import is_alive
from airtune.errors import ConnectionFailedError


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

    @property
    def stream_port(self) -> int:
        """Port of the stream of split rounds: the next one."""
        return self.port + 1

    @property
    def address(self) -> str:
        """How this machine itself calls the server."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"{host}:{self.port}"

    @property
    def tls(self) -> ServerFiles:
        """Where the certificates are."""
        return ServerFiles(self.state / "tls")

    def link(self) -> Link:
        """Return how commands on this machine reach the server."""
        authority = None if self.insecure else self.tls.authority
        return Link(self.address, authority, self.state / "flower-cli")


def running(state: Path) -> ServerSettings:
    """Return the settings of the server that runs from a state folder.

    Raises:
        ConnectionFailedError: if none does.
    """
    document = read_document(state)
    if document is None or not is_alive(int(document["pid"])):
        raise ConnectionFailedError(
            f"no server runs from {state}; start one with airtune server start --state {state}"
        )
    said = document["settings"]
    return ServerSettings(
        state=state, host=said["host"], port=said["port"], names=tuple(said["names"]),
        insecure=said["insecure"],
    )  # fmt: skip


def read_document(state: Path) -> dict[str, Any] | None:
    """Return what the server has written of itself, None where it never ran or ended."""
    try:
        found = json.loads((state / "server.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
