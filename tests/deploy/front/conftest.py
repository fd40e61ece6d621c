"""A server's door in this process, and what calls it."""

import json
import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from airtune.deploy.caller import Proof, ServerClient
from airtune.deploy.server.authority import ensure_certificates
from airtune.deploy.server.enroll import enroll
from airtune.deploy.server.front import Front
from airtune.deploy.server.site import ServerSettings
from airtune.engine.stream import StreamServer
from airtune.wire.channel import RUN_KEY, SERVER, Way
from airtune.wire.message import VERSION
from airtune.wire.post import Ticket

HANDSHAKE_S = 1.0
LONG_S = 60.0
"""Outer limit of what takes a moment on an idle machine."""
HELLO = json.dumps({"version": VERSION, "session": "one"}).encode()


@dataclass
class Site:
    """A server's door in this process."""

    state: Path
    front: Front
    port: int

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def proof(self, name: str, stem: str = "device") -> Proof:
        folder = self.state / "bundles" / name
        return Proof(folder / "ca.crt", folder / f"{stem}.key", folder / f"{stem}.crt")

    def way(self, name: str, stem: str = "device") -> Way:
        return Way(self.target, self.proof(name, stem).credentials(), ((RUN_KEY, "1"),))

    def link(self, name: str) -> ServerClient:
        return ServerClient(self.target, self.proof(name, "operator"))

    def files(self) -> set[str]:
        return {str(path) for path in self.state.rglob("*")}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    state = tmp_path_factory.mktemp("state")
    enroll(state, {"a": None, "b": None, "late": None})
    for role in ("view", "run", "admin"):
        enroll(state, {role: None}, role=role)
    ensure_certificates(state / "tls", ["127.0.0.1"])
    settings = ServerSettings(state, "127.0.0.1", 0)
    front = Front(settings)
    yield Site(state, front, front.serve(handshake_s=HANDSHAKE_S))
    front.close()


@pytest.fixture
def run_1(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[StreamServer]:
    """What a run serves its devices, behind the door as run 1."""
    server = StreamServer()
    monkeypatch.setattr(
        site.front.runs, "port", lambda number: server.port if number == 1 else None
    )
    monkeypatch.setattr(site.front._passing, "_channels", {})
    yield server
    server.close()


def called(way: Way, path: str, *parts: bytes, **more: Any) -> list[bytes]:
    with way.open() as channel:
        call = channel.stream_stream(f"/{path}")
        return list(call(iter(parts), timeout=LONG_S, metadata=(*way.metadata, *more.items())))


def code_of(way: Way, path: str, *parts: bytes) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        called(way, path, *parts)
    return caught.value.code()


class Line:
    """A device's line to the door."""

    def __init__(self, way: Way, session: str = "one") -> None:
        self.channel, self.said = way.open(), queue.SimpleQueue[bytes | None]()
        self.say(version=VERSION, session=session)
        call = self.channel.stream_stream(f"/{SERVER}/Attend")
        self.answers = call(iter(self.said.get, None), timeout=LONG_S)
        self.heard()

    def say(self, **words: Any) -> None:
        self.said.put(json.dumps(words).encode())

    def heard(self) -> Any:
        return json.loads(next(self.answers))

    def close(self) -> None:
        self.said.put(None)
        self.channel.close()


def handed(site: Site, node: int, ticket: Ticket) -> None:
    site.front.members.hand(node, 1, json.loads(ticket.to_json()))


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
