"""Nobody in without a key, and no code over the wire: the server's door, tried by who should not be."""

import json
import os
import queue
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

grpc = pytest.importorskip("grpc", reason="grpcio is not installed: pip install 'airtune[flower]'")

from airtune.deploy.caller import Proof, ServerClient  # noqa: E402
from airtune.deploy.keys import make_device_key, read_private_key, read_public_key  # noqa: E402
from airtune.deploy.server.authority import ensure_certificates, issue_certificate  # noqa: E402
from airtune.deploy.server.enroll import enroll  # noqa: E402
from airtune.deploy.server.front import Front  # noqa: E402
from airtune.deploy.server.register import Register  # noqa: E402
from airtune.deploy.server.site import ServerSettings  # noqa: E402
from airtune.engine.stream import StreamServer  # noqa: E402
from airtune.errors import DeploymentError, KeyRefusedError, StorageError  # noqa: E402
from airtune.recipe import load_recipe  # noqa: E402
from airtune.wire.channel import (  # noqa: E402
    CONTROL,
    RUN_KEY,
    SERVER,
    SERVICE,
    TOKEN_KEY,
    Way,
    channel_credentials,
)
from airtune.wire.message import VERSION, Message, parts_of  # noqa: E402
from airtune.wire.post import Ticket  # noqa: E402
from airtune.wire.tasks import fetch_task, send_answer  # noqa: E402

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


def stranger(site: Site, tmp_path: Path) -> dict[str, Way]:
    """Ways of who has the public ca.crt: without a certificate, and with one of its own authority."""
    authority = (site.state / "tls" / "ca.crt").read_bytes()
    public = read_public_key(make_device_key(tmp_path / "own.key"))
    own = issue_certificate(tmp_path / "own", "a", public)
    forged = channel_credentials(authority, read_private_key(tmp_path / "own.key"), own)
    return {
        "bare": Way(site.target, channel_credentials(authority)),
        "forged": Way(site.target, forged),
        "clear": Way(site.target),
    }


CALLS = (
    f"{CONTROL}/Submit",
    f"{CONTROL}/List",
    f"{CONTROL}/Stop",
    f"{CONTROL}/Follow",
    f"{SERVER}/Attend",
    f"{SERVICE}/Measure",
    f"{SERVICE}/Fetch",
    "flwr.proto.Control/StartRun",
    "flwr.proto.Fleet/UnregisterNode",
)


def test_a_stranger_gets_nowhere_and_leaves_nothing(site: Site, tmp_path: Path) -> None:
    before = site.files()
    for way in stranger(site, tmp_path).values():
        for path in CALLS:
            assert code_of(way, path, b"an app") is grpc.StatusCode.UNAVAILABLE, path
    assert site.files() == before


def test_of_a_strangers_400_mb_next_to_nothing_is_taken(site: Site) -> None:
    context = ssl.create_default_context(cafile=str(site.state / "tls" / "ca.crt"))
    context.set_alpn_protocols(["h2"])
    plain = socket.create_connection(("127.0.0.1", site.port), timeout=LONG_S)
    sent = 0
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as line, suppress(OSError):
        while sent < 400 << 20:
            line.sendall(bytes(1 << 16))
            sent += 1 << 16
    assert sent < 32 << 20  # what fits the kernel's buffers until the door has shut


def test_a_message_above_the_limit_is_refused_by_its_length(site: Site) -> None:
    code = code_of(site.way("a"), f"{SERVER}/Attend", bytes(3 << 20))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_half_open_connections_are_ended_and_hold_nobody_up(site: Site) -> None:
    began = time.monotonic()
    silent = [socket.create_connection(("127.0.0.1", site.port)) for _ in range(100)]
    for line in silent:
        line.settimeout(LONG_S)
        line.sendall(b"\x16\x03\x01")  # a TLS handshake that never goes on
    assert called(site.way("a"), f"{SERVICE}/Measure", b"?")
    assert [line.recv(1) for line in silent] == [b""] * 100
    assert time.monotonic() - began >= HANDSHAKE_S / 2
    for line in silent:
        line.close()


def test_a_flood_of_connections_does_not_end_the_server_nor_with_new_certificates(
    tmp_path: Path,
) -> None:
    script = Path(__file__).with_name("flooded.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "2", "0.6"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_no_bundle_of_code_is_an_order(site: Site) -> None:
    before = site.files()
    recipe = load_recipe(None).model_dump_json()
    for order in (
        {"fab": "UEsDBA=="},
        {"recipe": recipe, "app": "import os"},
        {"recipe": "{}; import os"},
    ):
        with pytest.raises(DeploymentError, match=r"an order has|cannot be read"):
            site.link("admin").call("Submit", **order)
    assert site.files() - before <= {str(site.state / "audit.jsonl")}


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [("method", "name", "./mine.py:Mine"), ("model", "allow_pickle", True)],
)
def test_what_can_run_code_at_the_server_takes_an_administrator(
    site: Site, section: str, name: str, value: object
) -> None:
    recipe = load_recipe(None).model_dump(mode="json")
    recipe[section][name] = value
    with pytest.raises(DeploymentError, match="takes the role admin, and run has run"):
        site.link("run").call("Submit", recipe=json.dumps(recipe))


def test_a_run_to_go_on_with_is_no_path(site: Site) -> None:
    with pytest.raises(DeploymentError, match=r"named by its folder in runs/, got '\.\./x'"):
        site.link("run").call("Submit", recipe=load_recipe(None).model_dump_json(), resume="../x")


def test_a_run_to_go_on_with_that_is_not_there_is_refused_with_those_that_are(site: Site) -> None:
    folder = site.state / "runs" / "2026-gates"
    folder.mkdir(parents=True)
    (folder / "roster.json").write_text("{}")
    recipe = load_recipe(None).model_dump_json()
    for role in ("run", "admin"):
        with pytest.raises(DeploymentError, match=r"no run latest .* go on are: 2026-gates$"):
            site.link(role).call("Submit", recipe=recipe, resume="latest")


def test_what_the_servers_machine_refuses_is_said_as_it_is(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(order: Any, **words: Any) -> int:
        raise StorageError("the disk is full, run-1.json was not written")

    monkeypatch.setattr(site.front.runs, "submit", full)
    with pytest.raises(DeploymentError, match=r"refused: the disk is full, run-1\.json"):
        site.link("run").call("Submit", recipe=load_recipe(None).model_dump_json())


def test_devices_that_cannot_be_had_are_refused_with_the_labels_that_there_are(site: Site) -> None:
    Register(site.state).label("b", {"site": "north"})
    recipe = load_recipe(None).model_dump_json()
    for where, devices, why in (
        ({"site": "nort"}, 0, "0 devices have site=nort, 1 are asked for; labels are site=north"),
        ({"site": "north"}, 2, "1 devices have site=north, 2 are asked for"),
        (["site"], 0, "where has labels"),
    ):
        with pytest.raises(DeploymentError, match=why):
            site.link("run").call("Submit", recipe=recipe, where=where, devices=devices)
    with pytest.raises(DeploymentError, match="leave --where out"):
        site.link("run").call("Submit", recipe=recipe, where={"site": "north"}, resume="x")
    [row] = [one for one in site.link("view").call("List")["devices"] if one["name"] == "b"]
    assert row["labels"] == {"site": "north"}


def test_a_device_that_is_taken_out_of_a_run_has_no_task_of_it(
    site: Site, run_1: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, str, str]] = []
    monkeypatch.setattr(site.front.runs, "tell_failed", lambda *words: told.append(words))
    monkeypatch.setattr(site.front.runs, "evict", lambda number, name: name == "a")
    line = Line(site.way("a"), session="evicted")
    handed(site, site.front.members.present()["a"], Ticket("task", "1"))
    line.heard()
    with pytest.raises(DeploymentError, match="b is in no run 1"):
        site.link("run").call("Evict", run=1, device="b")
    site.link("run").call("Evict", run=1, device="a")
    assert told == [(1, "task", "an operator took this device out of the run")]
    line.close()


@pytest.mark.parametrize(
    ("role", "call", "may"),
    [
        ("view", "List", True),
        ("view", "Submit", False),
        ("view", "Stop", False),
        ("run", "List", True),
        ("run", "Stop", True),
        ("admin", "Stop", True),
        ("view", "Evict", False),
        ("run", "Evict", True),
    ],
)
def test_what_an_operator_may_is_its_role(site: Site, role: str, call: str, may: bool) -> None:
    if call == "List":
        assert site.link(role).call(call)["runs"] == []
        return
    with pytest.raises(DeploymentError if may else KeyRefusedError):
        site.link(role).call(call, run=99)


def test_a_device_is_no_operator_and_an_operator_no_device(site: Site) -> None:
    denied = grpc.StatusCode.PERMISSION_DENIED
    assert code_of(site.way("a"), f"{CONTROL}/List", b"{}") is denied
    assert code_of(site.way("admin", "operator"), f"{SERVER}/Attend", HELLO) is denied


def test_what_operators_asked_for_is_written_down(site: Site) -> None:
    with pytest.raises(DeploymentError, match="no run 98"):
        site.link("run").call("Stop", run=98)
    rows = [json.loads(line) for line in (site.state / "audit.jsonl").read_text().splitlines()]
    assert {"operator": "run", "role": "run", "call": "stop", "run": 98}.items() <= rows[-1].items()


def test_who_is_revoked_is_put_out_and_stays_out(site: Site) -> None:
    way = site.way("late")
    with way.open() as channel:
        hold = threading.Event()

        def hello() -> Iterator[bytes]:
            yield HELLO
            hold.wait(LONG_S)

        answers = channel.stream_stream(f"/{SERVER}/Attend")(hello(), timeout=LONG_S)
        assert json.loads(next(answers)) == {"welcome": "late"}
        assert site.front.members.present()["late"]
        Register(site.state).revoke("late")
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        hold.set()
    assert "was revoked on" in caught.value.details()
    assert code_of(way, f"{SERVER}/Attend", HELLO) is grpc.StatusCode.UNAUTHENTICATED
    said = site.link("view").call("List")
    assert "late" not in {row["name"] for row in said["devices"]}
    assert said["refused"][0]["device"] == "late"


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


def test_a_ticket_that_was_lost_with_its_line_comes_again_and_one_that_came_does_not(
    site: Site, run_1: StreamServer
) -> None:
    first, node = Line(site.way("a")), site.front.members.present()["a"]
    for token in ("got", "lost"):
        handed(site, node, Ticket(token, "1"))
        assert first.heard()["ticket"]["token"] == token
    first.say(token="got")
    until(lambda: site.front.members._agents["a"].taken == {"got"})
    second = Line(site.way("a"))
    assert site.front.members.present()["a"] == node
    assert second.heard()["ticket"]["token"] == "lost"
    handed(site, node, Ticket("new", "1"))
    assert second.heard()["ticket"]["token"] == "new"
    third = Line(site.way("a"), session="two")
    assert site.front.members.present()["a"] != node
    for line in (first, second, third):
        line.close()


def test_what_a_device_could_not_do_is_told_of_its_own_tasks_alone(
    site: Site, run_1: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: queue.Queue[tuple[int, str, str]] = queue.Queue()
    monkeypatch.setattr(site.front.runs, "tell_failed", lambda *words: told.put(words))
    line = Line(site.way("a"), session="three")
    handed(site, site.front.members.present()["a"], Ticket("mine", "1"))
    line.heard()
    line.say(token="another's", why="I say so")
    line.say(token="mine", why="no memory")
    assert told.get(timeout=LONG_S) == (1, "mine", "no memory")
    line.close()
    until(lambda: "a" not in site.front.members.present())
    handed(site, 999, Ticket("late", "1"))
    assert told.get(timeout=LONG_S) == (1, "late", "this device is not connected")


def test_a_device_that_is_drained_ends_its_task_and_gets_none_until_its_agent_is_another(
    site: Site, run_1: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, str, str]] = []
    monkeypatch.setattr(site.front.runs, "tell_failed", lambda *words: told.append(words))
    task = Message(b"task")
    ticket = Ticket(run_1.post.put(task, "a"), "1", LONG_S)
    line = Line(site.way("a"), session="old")
    node = site.front.members.present()["a"]
    handed(site, node, ticket)
    line.heard()

    def row() -> tuple[str, int]:
        [found] = [one for one in site.link("view").call("List")["devices"] if one["name"] == "a"]
        return found["status"], found["tasks"]

    with pytest.raises(DeploymentError, match="nobody is not connected"):
        site.link("run").call("Drain", device="nobody")
    site.link("run").call("Drain", device="a")
    assert row() == ("draining", 1)
    assert "a" not in site.front.members.present()
    handed(site, node, Ticket("new", "1"))
    assert told == [(1, "new", "this device is not connected")]
    send_answer(site.way("a"), ticket, task)
    assert row() == ("draining", 0)
    again = Line(site.way("a"), session="new")
    assert row() == ("online", 0)
    for one in (line, again):
        one.close()


def test_another_version_is_named_to_the_device(site: Site) -> None:
    old = json.dumps({"version": "0.0.1", "session": "one"}).encode()
    with pytest.raises(grpc.RpcError) as caught:
        called(site.way("b"), f"{SERVER}/Attend", old)
    assert f"the server runs airtune {VERSION}, b airtune 0.0.1" in caught.value.details()


def test_a_task_and_its_answer_pass_the_door(site: Site, run_1: StreamServer) -> None:
    task = Message(b"task", (os.urandom(3 << 20),))
    ticket = Ticket(run_1.post.put(task, "a"), "1", LONG_S)
    got = fetch_task(site.way("a"), ticket)
    assert (got.header, got.blobs) == (task.header, task.blobs)
    reply = Message(b"answer", (os.urandom(2 << 20), b""))
    send_answer(site.way("a"), ticket, reply)
    response = run_1.post.response(ticket.token)
    assert response is not None
    assert response.message == reply


def test_an_answer_that_broke_off_may_be_sent_again(site: Site, run_1: StreamServer) -> None:
    ticket = Ticket(run_1.post.put(Message(b"task"), "a"), "1", LONG_S)
    reply, way, half_sent = Message(bytes(5 << 20)), site.way("a"), threading.Event()

    def half() -> Iterator[bytes]:
        yield from list(parts_of(reply))[:3]
        half_sent.set()
        threading.Event().wait(LONG_S)

    with way.open() as channel:
        metadata = (*way.metadata, (TOKEN_KEY, ticket.token))
        asked = channel.stream_unary(f"/{SERVICE}/Answer").future(half(), metadata=metadata)
        assert half_sent.wait(LONG_S)
        asked.cancel()
    send_answer(way, ticket, reply)
    response = run_1.post.response(ticket.token)
    assert response is not None
    assert response.message == reply


def test_a_device_reads_no_task_of_another_and_answers_none(
    site: Site, run_1: StreamServer
) -> None:
    token = run_1.post.put(Message(b"for a alone"), "a")
    metadata = {TOKEN_KEY: token, "airtune-device": "a"}  # it may say what it likes
    for name, body in (("Fetch", (b"",)), ("Answer", tuple(parts_of(Message(b"x"))))):
        with pytest.raises(grpc.RpcError) as caught:
            called(site.way("b"), f"{SERVICE}/{name}", *body, **metadata)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert run_1.post.response(token) is None
    with pytest.raises(grpc.RpcError, match="no task waits"):
        called(site.way("a"), f"{SERVICE}/Fetch", b"", **{TOKEN_KEY: "guess"})


def test_an_answer_larger_than_a_task_can_have_is_refused(site: Site, run_1: StreamServer) -> None:
    token = run_1.post.put(Message(b"task", answer_bytes=100), "a")
    first = next(parts_of(Message(bytes(101))))
    with pytest.raises(grpc.RpcError, match="at most 100 can answer"):
        called(site.way("a"), f"{SERVICE}/Answer", first, **{TOKEN_KEY: token})
    response = run_1.post.response(token)
    assert response is not None
    assert response.is_refused


def test_no_call_reaches_a_run_that_is_not_there_or_a_method_beside_those(
    site: Site, run_1: StreamServer
) -> None:
    other = Way(site.target, site.proof("a").credentials(), ((RUN_KEY, "2"),))
    assert code_of(other, f"{SERVICE}/Fetch", b"") is grpc.StatusCode.UNAUTHENTICATED
    assert code_of(site.way("a"), f"{SERVICE}/Shell", b"ls") is grpc.StatusCode.UNIMPLEMENTED
    assert code_of(site.way("a"), "flwr.proto.Runtime/PullAppInputs", b"") is (
        grpc.StatusCode.UNIMPLEMENTED
    )
