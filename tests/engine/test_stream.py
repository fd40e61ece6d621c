"""Split rounds over gRPC: equal to those in one process, and unmoved by devices that die or lie."""

import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from airtune.errors import (
    CodecError,
    ConnectionFailedError,
    FleetError,
    MethodError,
    TrainingError,
)
from airtune.model.base import base_of
from airtune.model.batch import Sequences
from airtune.model.state import initial_state
from airtune.plan import Assignment, CodecSpec, Workload, WorkSpec
from airtune.split import (
    DeviceEnd,
    DevicePart,
    Kind,
    SplitJob,
    StepMessage,
    join_round,
    split_round,
)
from airtune.work.train import TrainSettings

grpc = pytest.importorskip(
    "grpc", reason="grpcio is not installed: pip install 'airtune[federation]'"
)

from airtune.engine.stream import (  # noqa: E402
    Connection,
    SplitTask,
    StreamServer,
    StreamTiming,
    Way,
    channel_credentials,
    measure_link,
    run_device,
    server_credentials,
)
from airtune.engine.stream.gather import Batches  # noqa: E402
from airtune.engine.stream.message import (  # noqa: E402
    HEADER_BYTES,
    Expected,
    parts_of,
    read_message,
    run_number,
)
from airtune.engine.stream.sessions import Outbox, SessionTable, SplitSession, new_token  # noqa: E402
from airtune.wire.channel import SERVICE, TOKEN_KEY, open_channel  # noqa: E402

pytest.importorskip("cryptography", reason="pip install 'airtune[federation]'")
from airtune.deploy.server.authority import ensure_certificates  # noqa: E402

SETTINGS = TrainSettings(learning_rate=1e-2)
WORKLOAD = Workload(batch=2, tokens=16, local_steps=3, rank=4, lora_targets=("q_proj", "v_proj"))
SHARED = WorkSpec()
BARRIER = StreamTiming(window_s=float("inf"), rejoin_s=0.5, deadline_s=60.0)
RUN = "a run"


@pytest.fixture(scope="module")
def base():
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return base_of(LlamaForCausalLM(config))


@pytest.fixture(scope="module")
def server():
    serving = StreamServer(may_measure=lambda token: token == "probe")
    yield serving
    serving.close()


def job(device, cut, *, codec=None, steps=3):
    draw = np.random.default_rng(device)
    rows = tuple(draw.integers(3, 61, draw.integers(5, 15)) for _ in range(4))
    row = Assignment(device, 0.0, 0.0, 4, cut, 1.0, steps, codec or CodecSpec())
    return SplitJob(device, row, Sequences(rows, rows), 1.0 + device)


def task_of(base, jobs, *, work=SHARED, timing=BARRIER):
    return SplitTask(
        RUN, 0, base, initial_state(base, WORKLOAD, 0), tuple(j.row for j in jobs),
        tuple(j.weight for j in jobs), SETTINGS, work, WORKLOAD, 0, timing,
    )  # fmt: skip


def end_of(task, one, kind=DeviceEnd):
    return kind(task.context, {0: one})


def go(server, task, jobs, *, kind=DeviceEnd, doomed=()):
    """Run devices in threads; return the server's round and each device's, or its error."""
    opened, parts = server.open(task), {}

    def run(one):
        end = end_of(task, one, kind if one.device in doomed else DeviceEnd)
        target = f"127.0.0.1:{server.port}"
        try:
            parts[one.device] = run_device(
                end, Connection(Way(target), opened.tokens[one.device], RUN, deadline_s=30.0)
            )
        except (TrainingError, CodecError) as error:
            parts[one.device] = error

    threads = [threading.Thread(target=run, args=(one,)) for one in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return opened.wait(60), parts


def returned(parts):
    return {
        device: DevicePart(part.adapters, part.head, part.steps)
        for device, part in parts.items()
        if not isinstance(part, Exception)
    }


def join(task, result, parts):
    return join_round(task.context, task.rows, result.parts, result.log, parts)


def assert_same_updates(one, other):
    for a, b in zip(one, other, strict=True):
        assert (a.status, b.status) == ("ok", "ok")
        for name, tensor in a.update.adapters.items():
            torch.testing.assert_close(tensor, b.update.adapters[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("labels", ["travel", "stay"])
@pytest.mark.parametrize("codec", [CodecSpec(), CodecSpec("topk", keep=0.5, bits=8)])
def test_a_barrier_round_is_that_of_one_process(server, base, labels, codec):
    jobs = [job(0, 1, codec=codec), job(1, 3, codec=codec), job(2, 2, codec=codec)]
    jobs[2] = replace(jobs[2], row=replace(jobs[2].row, rank=2))
    work = WorkSpec(labels=labels, reuse_mask=True)
    task = task_of(base, jobs, work=work)
    result, parts = go(server, task, jobs)
    alone = split_round(
        base, task.state, jobs, settings=SETTINGS, work=work, workload=WORKLOAD, seed=0, round=0
    )
    assert_same_updates(join(task, result, returned(parts)), alone.outcomes)
    np.testing.assert_allclose(result.log.losses, alone.losses, rtol=1e-4)
    np.testing.assert_allclose(result.log.up_bytes, alone.up_bytes, rtol=0.02)
    assert result.batches == 3
    for place, part in parts.items():
        np.testing.assert_array_equal(part.up_bytes, result.log.up_bytes[:, place])
        np.testing.assert_array_equal(part.down_bytes, result.log.down_bytes[:, place])


class Dies(DeviceEnd):
    """Its process ends after the first forward pass, before the gradient comes."""

    def learn(self, payload, **part):
        raise TrainingError("killed")


def test_a_device_that_dies_between_forward_and_backward_stops_nobody(server, base):
    jobs = [job(0, 1), job(1, 2), job(2, 3)]
    task = task_of(base, jobs)
    began = time.monotonic()
    result, parts = go(server, task, jobs, kind=Dies, doomed={1})
    assert time.monotonic() - began < 10
    assert result.steps == (3, 1, 3)
    outcomes = join(task, result, returned(parts))
    assert [outcome.status for outcome in outcomes] == ["ok", "refused", "ok"]
    alone = split_round(
        base, task.state, jobs, settings=SETTINGS, work=WorkSpec(), workload=WORKLOAD, seed=0,
        round=0, drops={1: 0},
    )  # fmt: skip
    assert_same_updates([outcomes[0], outcomes[2]], [alone.outcomes[0], alone.outcomes[2]])


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


def test_a_device_whose_link_breaks_comes_back_in_the_same_round(server, base):
    jobs = [job(0, 1), job(1, 2)]
    task = task_of(base, jobs, timing=replace(BARRIER, rejoin_s=10.0))
    result, parts = go(server, task, jobs, kind=Stumbles, doomed={1})
    assert result.steps == (3, 3)
    assert result.broken == (0, 1)
    assert parts[1].connections == 2
    assert [o.status for o in join(task, result, returned(parts))] == ["ok", "ok"]


def test_who_is_late_for_the_window_joins_a_later_pass(server, base):
    class Slow(DeviceEnd):
        def send(self, step, **part):
            time.sleep(0.4)
            return super().send(step, **part)

    jobs = [job(0, 1), job(1, 2)]
    task = task_of(base, jobs, timing=replace(BARRIER, window_s=0.02))
    result, _ = go(server, task, jobs, kind=Slow, doomed={1})
    assert result.steps == (3, 3)
    assert result.batches > 3


def test_a_device_that_hangs_costs_the_others_one_window_not_one_a_step():
    seats = tuple(SplitSession(device, device, 40, new_token()) for device in range(2))
    table = SessionTable(1, 0, seats, StreamTiming(window_s=5.0), 1 << 20)
    message, rule = StepMessage(Kind.ACTIVATION, 1, 0, 0, 0), Batches()
    for seat in seats:
        assert not table.join(seat, Outbox())
    waits = []
    for _ in range(3):
        seats[0].slot = message
        until = rule.choose(table, first_at=100.0, now=100.0)
        waits.append(0.0 if isinstance(until, list) else until - 100.0)
        assert rule.choose(table, first_at=100.0, now=105.0) == [seats[0]]
        seats[0].slot = None
    assert waits == [5.0, 0.0, 0.0]
    seats[1].slot = message
    assert rule.choose(table, first_at=100.0, now=105.0) == [seats[1]]


def test_a_head_that_never_answers_does_not_outlast_the_round(server, base):
    hangs, goes_on = threading.Event(), threading.Event()

    class Hangs(DeviceEnd):
        def finish(self, payload):
            hangs.set()
            goes_on.wait(60)
            return super().finish(payload)

    jobs, timing = [job(0, 1)], replace(BARRIER, answer_s=600.0)
    task = task_of(base, jobs, work=WorkSpec(labels="stay"), timing=timing)
    opened = server.open(task)
    end = end_of(task, jobs[0], Hangs)
    connection = Connection(Way(f"127.0.0.1:{server.port}"), opened.tokens[0], RUN, deadline_s=30.0)

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
def honest(base):
    """The first message of device 1."""
    end = end_of(task_of(base, [job(1, 2)]), job(1, 2))
    return replace(end.send(0)[0], run=run_number(RUN))


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
def test_a_device_that_lies_is_out_and_the_other_finishes(server, base, honest, lie):
    make, says = LIES[lie]
    jobs = [job(0, 1), job(1, 2)]
    opened = server.open(task_of(base, jobs))
    answers = {}

    def tell():
        answers["liar"] = raw(server, opened.tokens[1], list(make(honest)))

    liar = threading.Thread(target=tell)
    liar.start()
    part = run_device(
        end_of(task_of(base, jobs), jobs[0]),
        Connection(Way(f"127.0.0.1:{server.port}"), opened.tokens[0], RUN),
    )
    liar.join(10)
    result = opened.wait(10)
    code, text = answers["liar"]
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert says in text
    assert says in result.log.refused[1]
    assert part.steps == 3
    assert np.isfinite(result.log.losses[:, 0]).all()


def test_a_replayed_message_is_refused(server, base, honest):
    jobs = [job(1, 2)]
    opened = server.open(task_of(base, jobs))
    pieces = list(parts_of(honest))
    code, text = raw(server, opened.tokens[1], pieces + pieces)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "awaits step 1" in text or "nothing more is awaited" in text
    opened.wait(10)


def test_a_truncated_message_ends_as_one(honest):
    whole = b"".join(parts_of(honest))
    expected = Expected(frozenset({Kind.ACTIVATION}), run_number(RUN), 0, 1, 0, 1 << 20)
    with pytest.raises(CodecError, match="ended after"):
        read_message(iter([whole[: HEADER_BYTES + 5]]), lambda: expected)


def test_a_token_is_needed_and_is_good_for_one_stream(server, base):
    opened = server.open(task_of(base, [job(0, 1)], timing=replace(BARRIER, deadline_s=2.0)))
    assert raw(server, "guess", [])[0] == grpc.StatusCode.UNAUTHENTICATED
    first = threading.Thread(target=raw, args=(server, opened.tokens[0], []))
    first.start()
    time.sleep(0.3)
    code, text = raw(server, opened.tokens[0], [])
    assert code == grpc.StatusCode.ALREADY_EXISTS
    assert "one stream a token" in text
    opened.wait(10)
    first.join(10)
    assert raw(server, opened.tokens[0], [])[0] == grpc.StatusCode.UNAUTHENTICATED


def test_what_streams_do_not_carry_is_refused_before_it_begins(server, base):
    handed, frozen = WorkSpec(server="sequential", hand_over=True), WorkSpec(device_frozen=True)
    for work, says in ((handed, "hand_over, as streams carry"), (frozen, "how many each device")):
        with pytest.raises(MethodError, match=f"over a network cannot have .*{says}"):
            server.open(task_of(base, [job(0, 1)], work=work))


def test_a_server_that_is_not_there_is_named(base):
    task = task_of(base, [job(0, 1)])
    with pytest.raises(ConnectionFailedError, match="cannot be reached"):
        run_device(
            end_of(task, job(0, 1)), Connection(Way("127.0.0.1:9"), "x", RUN, deadline_s=0.5)
        )


def test_with_tls_a_device_trusts_its_own_authority_alone(base, tmp_path):
    files = [ensure_certificates(tmp_path / name, ["127.0.0.1"]) for name in ("a", "b")]
    server = StreamServer(
        credentials=server_credentials(files[0].certificate.read_bytes(), files[0].key.read_bytes())
    )
    jobs = [job(0, 1)]
    task = task_of(base, jobs)
    opened = server.open(task)

    def connection(authority):
        credentials = channel_credentials(authority.read_bytes())
        target = f"127.0.0.1:{server.port}"
        return Connection(Way(target, credentials), opened.tokens[0], RUN, deadline_s=20.0)

    with pytest.raises(ConnectionFailedError, match="does not trust"):
        run_device(end_of(task, jobs[0]), connection(files[1].authority))
    assert run_device(end_of(task, jobs[0]), connection(files[0].authority)).steps == 3
    opened.wait(10)
    server.close()


def test_the_link_is_measured_by_who_may(server):
    link = measure_link(Way(f"127.0.0.1:{server.port}"), "probe", seconds=0.3)
    assert link.up_bps > 1e7
    assert link.down_bps > 1e7
    assert 0 < link.round_trip_s < 1
    with pytest.raises(FleetError, match="may not measure"):
        measure_link(Way(f"127.0.0.1:{server.port}"), "guess", seconds=0.1)


DEVICE = """
import sys
from pathlib import Path
from safetensors.torch import save_file
from airtune.data import DataSpec, load_federated
from airtune.data.embedded import EMBEDDED_MODEL
from airtune.engine.stream import Connection, Way, run_device
from airtune.model.base import load_base
from airtune.model.state import initial_state
from airtune.plan import Assignment, CodecSpec, Workload, WorkSpec
from airtune.split import DeviceEnd, SplitContext, SplitJob
from airtune.work.train import TrainSettings

def world(devices=2):
    base = load_base(EMBEDDED_MODEL, device="cpu")
    data = load_federated(DataSpec(limit=60), tokenizer=base.tokenizer, devices=devices, seed=0)
    workload = Workload(batch=4, tokens=64, local_steps=6, rank=4, lora_targets=("q_proj", "v_proj"))
    jobs = [
        SplitJob(i, Assignment(i, 0.0, 0.0, 4, 1 + i, 1.0, 6, CodecSpec()), data.devices[i].train, 1.0)
        for i in range(devices)
    ]
    return base, initial_state(base, workload, 0), workload, jobs

if __name__ == "__main__":
    target, device, token, out = sys.argv[1:5]
    base, state, workload, jobs = world(int(sys.argv[5]))
    context = SplitContext.of(base, state, settings=TrainSettings(), work=WorkSpec(),
                              workload=workload, seed=0, round=0)
    end = DeviceEnd(context, {0: jobs[int(device)]})
    class Reports(type(end)):
        def learn(self, payload, **part):
            print("gradient", flush=True)
            sys.stdin.readline()
            super().learn(payload, **part)
    end.__class__ = Reports
    part = run_device(end, Connection(Way(target), token, "a run"))
    save_file(part.adapters, out)
"""


@pytest.fixture(scope="module")
def world():
    space = {"__name__": "device"}
    exec(DEVICE, space)  # the devices' processes run this very text
    return space["world"]


@pytest.fixture
def begin(server, tmp_path):
    """Starts the processes of devices, and ends those that a failed test leaves."""
    started = []

    def start(opened, device, count):
        script = tmp_path / "device.py"
        script.write_text(textwrap.dedent(DEVICE))
        started.append(subprocess.Popen(
            [sys.executable, script, f"127.0.0.1:{server.port}", str(device),
             opened.tokens[device], tmp_path / f"{device}.safetensors", str(count)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ))  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def await_gradient(device):
    assert device.stdout.readline() == "gradient\n", f"it ended with {device.wait(60)}"


def let_go(devices):
    for device in devices:
        device.stdin.write("\n" * 6)
        device.stdin.flush()
    for device in devices:
        device.communicate(timeout=900)


def opened_world(server, world, count):
    base, state, workload, jobs = world(count)
    task = SplitTask(
        RUN, 0, base, state, tuple(j.row for j in jobs), (1.0,) * count, TrainSettings(),
        WorkSpec(), workload, 0, replace(BARRIER, join_s=900.0, deadline_s=1800.0),
    )  # fmt: skip
    return task, jobs, server.open(task)


def alone_in(task, jobs, **more):
    return split_round(
        task.base, task.state, jobs, settings=task.settings, work=task.work,
        workload=task.workload, seed=0, round=0, **more,
    )  # fmt: skip


def parts_in(folder, devices):
    return {
        device: DevicePart(load_file(folder / f"{device}.safetensors"), {}, 6) for device in devices
    }


@pytest.mark.slow
def test_two_processes_and_a_server_are_one_process(server, world, begin, tmp_path):
    task, jobs, opened = opened_world(server, world, 2)
    devices = [begin(opened, device, 2) for device in range(2)]
    let_go(devices)
    outcomes = join(task, opened.wait(60), parts_in(tmp_path, (0, 1)))
    assert_same_updates(outcomes, alone_in(task, jobs).outcomes)


@pytest.mark.slow
def test_a_process_killed_mid_round_leaves_the_rest_right(server, world, begin, tmp_path):
    task, jobs, opened = opened_world(server, world, 3)
    devices = [begin(opened, device, 3) for device in range(3)]
    for _ in range(2):  # two steps together, then the third gradient finds device 1 dead
        for device in devices:
            await_gradient(device)
            device.stdin.write("\n")
            device.stdin.flush()
    await_gradient(devices[1])
    devices[1].send_signal(signal.SIGKILL)
    devices[1].wait(10)
    del devices[1]
    let_go(devices)
    result = opened.wait(10)
    outcomes = join(task, result, parts_in(tmp_path, (0, 2)))
    assert [outcome.status for outcome in outcomes] == ["ok", "refused", "ok"]
    alone = alone_in(task, jobs, drops={1: 2})
    assert_same_updates([outcomes[0], outcomes[2]], [alone.outcomes[0], alone.outcomes[2]])
