"""Each device has its own stream and deadline: who dies or crawls costs nobody else anything."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

grpc = pytest.importorskip(
    "grpc", reason="grpcio is not installed: pip install 'airtune[federation]'"
)

from airtune.engine.stream import StreamServer  # noqa: E402
from airtune.errors import CodecError, ConnectionFailedError  # noqa: E402
from airtune.wire import post  # noqa: E402
from airtune.wire.channel import SERVICE, TOKEN_KEY, ReusedChannels, Way  # noqa: E402
from airtune.wire.message import Message, parts_of, read_message  # noqa: E402
from airtune.wire.post import PostTransport, Ticket  # noqa: E402
from airtune.wire.tasks import fetch_task, send_answer  # noqa: E402

DEADLINE_S, GRACE_S, LONG_S = 3.0, 10.0, 60.0
"""The grace is for a machine that has other work; on an idle one it is a tenth of a second."""
TASK, REPLY = Message(b"task", (b"blob",)), Message(b"answer", (bytes(100_000),))
Behaviour = Callable[[Way, Ticket], None]


@pytest.fixture
def server() -> Iterator[StreamServer]:
    serving = StreamServer()
    yield serving
    serving.close()


class Fleet:
    """Devices in threads, each with a behaviour of its own."""

    def __init__(self, server: StreamServer, *behaviours: Behaviour) -> None:
        self.way, self.nodes = (
            Way(f"127.0.0.1:{server.port}"),
            dict(enumerate(range(len(behaviours)))),
        )
        self.behaviours = behaviours
        self.transport = PostTransport(server.post, locate=lambda: dict(self.nodes), hand=self.hand)

    def hand(self, node: int, ticket: Ticket) -> None:
        work = self.behaviours[node]
        threading.Thread(target=work, args=(self.way, ticket), daemon=True).start()

    def send(self, deadline_s: float = LONG_S) -> dict[int, post.Response]:
        messages = dict.fromkeys(self.nodes, TASK)
        return dict(self.transport.send(messages, deadline_s=deadline_s))


def works(way: Way, ticket: Ticket) -> None:
    assert fetch_task(way, ticket).blobs == TASK.blobs
    send_answer(way, ticket, REPLY)


def sends(pieces: Iterator[bytes], way: Way, ticket: Ticket) -> None:
    """Send an answer piece by piece; however it ends."""
    with way.open() as channel:
        call = channel.stream_unary(f"/{SERVICE}/Answer")
        try:
            call(pieces, metadata=((TOKEN_KEY, ticket.token),), timeout=LONG_S)
        except grpc.RpcError:
            return


def announces_and_stops(way: Way, ticket: Ticket) -> None:
    """Say that an answer is to come, and send none of it."""

    def pieces() -> Iterator[bytes]:
        yield next(parts_of(REPLY))
        queue.Queue().get()  # for ever

    sends(pieces(), way, ticket)


def crawls(way: Way, ticket: Ticket) -> None:
    """Send a byte now and then."""

    def pieces() -> Iterator[bytes]:
        for piece in parts_of(REPLY, part_bytes=1):
            yield piece
            time.sleep(0.05)

    sends(pieces(), way, ticket)


def dies(way: Way, ticket: Ticket) -> None:
    """Break the connection in the middle of the answer."""
    sent = threading.Event()

    def half() -> Iterator[bytes]:
        yield from list(parts_of(REPLY, part_bytes=1000))[:50]
        sent.set()
        queue.Queue().get()  # for ever

    with way.open() as channel:
        call = channel.stream_unary(f"/{SERVICE}/Answer")
        asked = call.future(half(), metadata=((TOKEN_KEY, ticket.token),))
        sent.wait(LONG_S)
        asked.cancel()


def ends_early(way: Way, ticket: Ticket) -> None:
    """Say that it is done in the middle of the answer."""
    sends(iter(list(parts_of(REPLY, part_bytes=1000))[:50]), way, ticket)


def is_silent(way: Way, ticket: Ticket) -> None:
    """Never come."""


def test_who_holds_back_is_late_and_what_the_others_sent_counts(server: StreamServer) -> None:
    began = time.monotonic()
    bad = announces_and_stops, crawls, dies, is_silent, ends_early
    found = Fleet(server, works, *bad, works).send(DEADLINE_S)
    assert time.monotonic() - began < DEADLINE_S + GRACE_S
    for good in (found[0], found[len(bad) + 1]):
        assert good.message == REPLY
        assert good.after_s < DEADLINE_S
    for place, behaviour in enumerate(bad, start=1):
        assert found[place].is_late, behaviour.__name__
        assert "not back by the deadline of 3 s" in found[place].fault


def test_nobody_waits_for_the_deadline_where_all_have_answered(server: StreamServer) -> None:
    found = Fleet(server, works, works).send()
    assert [response.message for response in found.values()] == [REPLY, REPLY]
    assert max(response.after_s for response in found.values()) < LONG_S / 2


def test_an_answer_after_the_deadline_has_nowhere_to_go(server: StreamServer) -> None:
    tickets: queue.Queue[Ticket] = queue.Queue()
    fleet = Fleet(server, lambda way, ticket: tickets.put(ticket))
    assert fleet.send(0.05)[0].is_late
    with pytest.raises(ConnectionFailedError, match="it is over"):
        send_answer(fleet.way, tickets.get(), REPLY)


def test_a_device_that_says_why_it_cannot_is_not_waited_for(server: StreamServer) -> None:
    fleet = Fleet(server, lambda way, ticket: server.post.fail(ticket.token, "the worker ended"))
    [response] = fleet.send().values()
    assert (response.message, response.fault) == (None, "the worker ended")


def test_a_device_whose_agent_started_anew_is_not_waited_for(
    server: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post, "LOOK_S", 0.01)
    fleet = Fleet(server, lambda way, ticket: fleet.nodes.update({0: 17}))
    [response] = fleet.send().values()
    assert response.fault == "this device left while it worked"


def test_who_is_gone_is_waited_for_a_while_and_may_come_back(
    server: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post, "LOOK_S", 0.01)
    monkeypatch.setattr(post, "GONE_S", 0.2)
    fleet = Fleet(server, lambda way, ticket: fleet.nodes.pop(0) and None, works)
    found = fleet.send()
    assert found[0].fault == "this device left while it worked"
    assert found[1].message == REPLY


def test_a_broken_answer_may_be_sent_again(server: StreamServer) -> None:
    def tries_twice(way: Way, ticket: Ticket) -> None:
        dies(way, ticket)
        works(way, ticket)

    assert Fleet(server, tries_twice).send()[0].message == REPLY


def test_a_connection_is_used_again_until_a_call_on_it_fails(server: StreamServer) -> None:
    way, seen = Way(f"127.0.0.1:{server.port}", kept=ReusedChannels()), []
    for fails in (False, False, True, False):
        with suppress(ConnectionError), way.open() as channel:
            seen.append(channel)
            if fails:
                raise ConnectionError
    assert seen[0] is seen[1] is seen[2]
    assert seen[3] is not seen[2]
    way.kept.close()


def test_an_upload_is_timed_where_it_arrives(server: StreamServer) -> None:
    def paced(way: Way, ticket: Ticket) -> None:
        send_answer(way, ticket, REPLY, pace=lambda size: time.sleep(0.05))

    [response] = Fleet(server, paced).send().values()
    assert response.message is not None
    assert response.message.came_s >= 0.9 * 0.05 * 7  # seven pieces of at most 16 KiB


@given(st.binary(max_size=300), st.lists(st.binary(max_size=300), max_size=5), st.integers(1, 64))
def test_what_is_cut_into_parts_comes_together(
    header: bytes, blobs: list[bytes], size: int
) -> None:
    message = Message(header, tuple(blobs))
    whole = message.size_bytes
    assert read_message(parts_of(message, part_bytes=size), max_bytes=whole) == message
    if whole:
        with pytest.raises(CodecError, match="at most"):
            read_message(parts_of(message, part_bytes=size), max_bytes=whole - 1)
        with pytest.raises(CodecError, match="ended after"):
            read_message(iter(list(parts_of(message, part_bytes=size))[:-1]), max_bytes=whole)


@pytest.mark.parametrize(
    "first", [b"", b"AE", b"XX" + bytes(6), b"AE\x01\x05" + bytes(4), bytes(range(7, 71))]
)
def test_a_first_part_that_is_none_is_refused(first: bytes) -> None:
    with pytest.raises(CodecError):
        read_message(iter([first]), max_bytes=1 << 30)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"token": 1}', "x" * 5000, '{"path": "/etc/passwd"}']
)
def test_what_is_no_ticket_is_refused(text: str) -> None:
    with pytest.raises(CodecError, match="is no ticket"):
        Ticket.from_json(text)
