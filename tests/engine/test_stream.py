"""Split rounds over gRPC: equal to those in one process, and unmoved by devices that die or hang."""

import threading
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from airtune.errors import ConnectionFailedError, TrainingError
from airtune.plan import CodecSpec, WorkSpec
from airtune.split import DeviceEnd, Kind, StepMessage

grpc = pytest.importorskip(
    "grpc", reason="grpcio is not installed: pip install 'airtune[federation]'"
)

from airtune.engine.stream import (  # noqa: E402
    Connection,
    StreamServer,
    StreamTiming,
    Way,
    channel_credentials,
    run_device,
    server_credentials,
)
from airtune.engine.stream.gather import Batches  # noqa: E402
from airtune.engine.stream.sessions import Outbox, SessionTable, SplitSession, new_token  # noqa: E402

pytest.importorskip("cryptography", reason="pip install 'airtune[federation]'")
from airtune.deploy.server.authority import ensure_certificates  # noqa: E402


@pytest.mark.parametrize("labels", ["travel", "stay"])
@pytest.mark.parametrize("codec", [CodecSpec(), CodecSpec("topk", keep=0.5, bits=8)])
def test_a_barrier_round_is_that_of_one_process(streams, labels, codec):
    jobs = [
        streams.job(0, 1, codec=codec),
        streams.job(1, 3, codec=codec),
        streams.job(2, 2, codec=codec),
    ]
    jobs[2] = replace(jobs[2], row=replace(jobs[2].row, rank=2))
    work = WorkSpec(labels=labels, reuse_mask=True)
    task = streams.task(jobs, work)
    result, parts = streams.go(task, jobs)
    streams.assert_same(task, result, parts, streams.alone(task, jobs))
    assert result.batches == 3


class Dies(DeviceEnd):
    """Its process ends after the first forward pass, before the gradient comes."""

    def learn(self, payload, **part):
        raise TrainingError("killed")


def test_a_device_that_dies_between_forward_and_backward_stops_nobody(streams):
    jobs = [streams.job(0, 1), streams.job(1, 2), streams.job(2, 3)]
    task = streams.task(jobs, WorkSpec())
    began = time.monotonic()
    result, parts = streams.go(task, jobs, kinds={1: Dies})
    assert time.monotonic() - began < 10
    assert result.steps == (3, 1, 3)
    outcomes = streams.joined(task, result, parts)
    assert [outcome.status for outcome in outcomes] == ["ok", "refused", "ok"]
    alone = streams.alone(task, jobs, drops={1: 0}).outcomes
    streams.assert_same_updates([outcomes[0], outcomes[2]], [alone[0], alone[2]])


class Stumbles(DeviceEnd):
    """Loses its connection once, before the gradient of its second step comes."""

    has_fallen = False

    def send(self, step, **part):
        made = super().send(step, **part)
        if step == 1 and not self.has_fallen:
            self.has_fallen = True
            error = grpc.RpcError()
            error.code, error.details = lambda: grpc.StatusCode.UNAVAILABLE, lambda: "link down"
            raise error
        return made


def test_a_device_whose_link_breaks_comes_back_in_the_same_round(streams):
    jobs = [streams.job(0, 1), streams.job(1, 2)]
    task = streams.task(jobs, WorkSpec(), rejoin_s=10.0)
    result, parts = streams.go(task, jobs, kinds={1: Stumbles})
    assert result.steps == (3, 3)
    assert result.broken == (0, 1)
    assert parts[1].connections == 2
    assert [o.status for o in streams.joined(task, result, parts)] == ["ok", "ok"]


def test_who_is_late_for_the_window_joins_a_later_pass(streams):
    class Slow(DeviceEnd):
        def send(self, step, **part):
            time.sleep(0.4)
            return super().send(step, **part)

    jobs = [streams.job(0, 1), streams.job(1, 2)]
    task = streams.task(jobs, WorkSpec(), window_s=0.02)
    result, _ = streams.go(task, jobs, kinds={1: Slow})
    assert result.steps == (3, 3)
    assert result.batches > 3


def test_a_device_that_hangs_costs_the_others_one_window_not_one_a_step():
    sessions = tuple(SplitSession(device, device, 40, new_token()) for device in range(2))
    table = SessionTable(1, 0, sessions, StreamTiming(window_s=5.0), 1 << 20)
    message, rule = StepMessage(Kind.ACTIVATION, 1, 0, 0, 0), Batches()
    for session in sessions:
        assert not table.join(session, Outbox())
    waits = []
    for _ in range(3):
        sessions[0].slot = message
        until = rule.choose(table, first_at=100.0, now=100.0)
        waits.append(0.0 if isinstance(until, list) else until - 100.0)
        assert rule.choose(table, first_at=100.0, now=105.0) == [sessions[0]]
        sessions[0].slot = None
    assert waits == [5.0, 0.0, 0.0]
    sessions[1].slot = message
    assert rule.choose(table, first_at=100.0, now=105.0) == [sessions[1]]


def test_a_head_that_never_answers_does_not_outlast_the_round(streams):
    hangs, goes_on = threading.Event(), threading.Event()

    class Hangs(DeviceEnd):
        def finish(self, payload):
            hangs.set()
            goes_on.wait(60)
            return super().finish(payload)

    jobs = [streams.job(0, 1)]
    task = streams.task(jobs, WorkSpec(labels="stay"), answer_s=600.0)
    opened = streams.server.open(task)
    end = Hangs(task.context, {0: jobs[0]})
    connection = Connection(
        Way(f"127.0.0.1:{streams.server.port}"), opened.tokens[0], task.run, deadline_s=30.0
    )

    def work():
        with suppress(TrainingError):
            run_device(end, connection)

    device = threading.Thread(target=work)
    device.start()
    assert hangs.wait(30)
    opened.close()
    try:
        assert np.isnan(opened.wait(30).log.losses).all()
    finally:
        goes_on.set()
        device.join(30)


def test_with_tls_a_device_trusts_its_own_authority_alone(streams, tmp_path):
    files = [ensure_certificates(tmp_path / name, ["127.0.0.1"]) for name in ("a", "b")]
    server = StreamServer(
        credentials=server_credentials(files[0].certificate.read_bytes(), files[0].key.read_bytes())
    )
    jobs = [streams.job(0, 1)]
    task = streams.task(jobs, WorkSpec())
    opened = server.open(task)

    def connection(authority):
        credentials = channel_credentials(authority.read_bytes())
        target = f"127.0.0.1:{server.port}"
        return Connection(Way(target, credentials), opened.tokens[0], task.run, deadline_s=20.0)

    with pytest.raises(ConnectionFailedError, match="does not trust"):
        run_device(DeviceEnd(task.context, {0: jobs[0]}), connection(files[1].authority))
    assert (
        run_device(DeviceEnd(task.context, {0: jobs[0]}), connection(files[0].authority)).steps == 3
    )
    opened.wait(10)
    server.close()
