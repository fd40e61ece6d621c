"""A device's tasks and answers pass the door: its own, once, and of the size that a task can have."""

import json
import os
import queue
import threading
from collections.abc import Iterator

import grpc
import pytest
from tests.deploy.front.conftest import LONG_S, Line, Site, called, code_of, handed, until

from airtune.engine.stream import StreamServer
from airtune.errors import DeploymentError
from airtune.wire.channel import RUN_KEY, SERVER, SERVICE, TOKEN_KEY, Way
from airtune.wire.message import VERSION, Message, parts_of
from airtune.wire.post import Ticket
from airtune.wire.tasks import fetch_task, send_answer


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
