"""What a device may say in a split round that no honest one would: it is out, the others go on."""

import queue
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from airtune.errors import CodecError, ConnectionFailedError, MethodError
from airtune.plan import WorkSpec
from airtune.split import DeviceEnd, Kind

grpc = pytest.importorskip(
    "grpc", reason="grpcio is not installed: pip install 'airtune[federation]'"
)

from airtune.engine.stream import Connection, Way, run_device  # noqa: E402
from airtune.engine.stream.message import HEADER_BYTES, Expected, parts_of, read_message, run_number  # noqa: E402
from airtune.wire.channel import SERVICE, TOKEN_KEY, open_channel  # noqa: E402


def raw(server, token, messages):
    """Speak to the server as no honest device would; return the code and the text it ends with."""
    outgoing = queue.SimpleQueue()
    for message in messages:
        outgoing.put(message)
    with open_channel(f"127.0.0.1:{server.port}", None) as channel:
        answers = channel.stream_stream(f"/{SERVICE}/Round")(
            iter(outgoing.get, None), timeout=10, metadata=((TOKEN_KEY, token),)
        )
        try:
            for _ in answers:
                pass
        except grpc.RpcError as error:
            return error.code(), error.details()
        finally:
            outgoing.put(None)
    return grpc.StatusCode.OK, ""


@pytest.fixture
def honest(streams):
    """The first message of device 1."""
    task = streams.task([streams.job(1, 2)], WorkSpec())
    end = DeviceEnd(task.context, {0: streams.job(1, 2)})
    return replace(end.send(0)[0], run=run_number(task.run))


def altered(pieces):
    whole = bytearray(b"".join(pieces))
    whole[-3] ^= 1
    return [bytes(whole)]


LIES = {
    "another device's identity": (lambda m: parts_of(replace(m, device=0)), "device 0"),
    "another run": (lambda m: parts_of(replace(m, run=7)), "run 7"),
    "another round": (lambda m: parts_of(replace(m, round=4)), "round 4"),
    "a step that is past": (lambda m: parts_of(replace(m, step=2)), "step 2"),
    "a kind that is not awaited": (
        lambda m: parts_of(replace(m, kind=Kind.HIDDEN_GRADIENT)), "ACTIVATION, STOP is awaited"),
    "a huge message": (
        lambda m: [next(parts_of(replace(m, payload=bytes(1 << 22))))], "the most"),
    "a bit that flipped": (lambda m: altered(parts_of(m)), "checksum"),
    "more than its part of a step": (
        lambda m: parts_of(replace(m, share=2.0)), "got 2 after 0"),
    "no part of a step": (lambda m: parts_of(replace(m, share=float("nan"))), "got nan"),
    "a length that is not": (lambda m: parts_of(replace(m, rows=3)), "declares 3"),
    "noise for a payload": (
        lambda m: parts_of(replace(m, payload=bytes(len(m.payload)))), "payload"),
    "labels outside the words": (
        lambda m: parts_of(replace(m, beside=m.beside[:-4] + b"\xff\xff\x00\x00")), "labels"),
    "less than a header": (lambda m: [b"AS"], "header"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_device_that_lies_is_out_and_the_other_finishes(streams, honest, lie):
    make, says = LIES[lie]
    jobs = [streams.job(0, 1), streams.job(1, 2)]
    task = streams.task(jobs, WorkSpec())
    opened = streams.server.open(task)
    answers = {}

    def tell():
        answers["liar"] = raw(streams.server, opened.tokens[1], list(make(honest)))

    liar = threading.Thread(target=tell)
    liar.start()
    part = run_device(
        DeviceEnd(task.context, {0: jobs[0]}),
        Connection(Way(f"127.0.0.1:{streams.server.port}"), opened.tokens[0], task.run),
    )
    liar.join(10)
    result = opened.wait(10)
    code, text = answers["liar"]
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert says in text
    assert says in result.log.refused[1]
    assert part.steps == 3
    assert np.isfinite(result.log.losses[:, 0]).all()


def test_a_replayed_message_is_refused(streams, honest):
    jobs = [streams.job(1, 2)]
    opened = streams.server.open(streams.task(jobs, WorkSpec()))
    pieces = list(parts_of(honest))
    code, text = raw(streams.server, opened.tokens[1], pieces + pieces)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "awaits step 1" in text or "nothing more is awaited" in text
    opened.wait(10)


def test_a_truncated_message_ends_as_one(honest):
    whole = b"".join(parts_of(honest))
    expected = Expected(frozenset({Kind.ACTIVATION}), honest.run, 0, 1, 0, 1 << 20)
    with pytest.raises(CodecError, match="ended after"):
        read_message(iter([whole[: HEADER_BYTES + 5]]), lambda: expected)


def test_a_token_is_needed_and_is_good_for_one_stream(streams):
    opened = streams.server.open(streams.task([streams.job(0, 1)], WorkSpec(), deadline_s=2.0))
    assert raw(streams.server, "guess", [])[0] == grpc.StatusCode.UNAUTHENTICATED
    first = threading.Thread(target=raw, args=(streams.server, opened.tokens[0], []))
    first.start()
    time.sleep(0.3)
    code, text = raw(streams.server, opened.tokens[0], [])
    assert code == grpc.StatusCode.ALREADY_EXISTS
    assert "one stream a token" in text
    opened.wait(10)
    first.join(10)
    assert raw(streams.server, opened.tokens[0], [])[0] == grpc.StatusCode.UNAUTHENTICATED


def test_what_streams_do_not_carry_is_refused_before_it_begins(streams):
    handed, frozen = WorkSpec(server="sequential", hand_over=True), WorkSpec(device_frozen=True)
    for work, says in ((handed, "hand_over, as streams carry"), (frozen, "how many each device")):
        task = replace(streams.task([streams.job(0, 1)], work), samples=())
        with pytest.raises(MethodError, match=f"over a network cannot have .*{says}"):
            streams.server.open(task)


def test_a_server_that_is_not_there_is_named(streams):
    task = streams.task([streams.job(0, 1)], WorkSpec())
    with pytest.raises(ConnectionFailedError, match="cannot be reached"):
        run_device(
            DeviceEnd(task.context, {0: streams.job(0, 1)}),
            Connection(Way("127.0.0.1:9"), "x", task.run, deadline_s=0.5),
        )
