"""The other servers of split rounds over gRPC: a copy a device, and one device after the other."""

import threading
import time
from copy import deepcopy
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch

from airtune.errors import TrainingError
from airtune.model.base import base_of
from airtune.plan import CodecSpec, WorkSpec

pytest.importorskip("grpc", reason="grpcio is not installed: pip install 'airtune[federation]'")

from airtune.engine.stream import StreamServer, StreamTiming
from airtune.engine.stream.gather import turns_of
from airtune.engine.stream.sessions import Outbox, SessionTable, SplitSession, new_token
from airtune.split import DeviceEnd, Kind, StepMessage


@pytest.mark.parametrize("labels", ["travel", "stay"])
@pytest.mark.parametrize("codec", [CodecSpec(), CodecSpec("topk", keep=0.5, bits=8)])
def test_copies_are_those_of_one_process(streams, labels, codec):
    jobs = [
        streams.job(0, 1, codec=codec),
        streams.job(1, 3, codec=codec),
        streams.job(2, 1, codec=codec),
    ]
    task = streams.task(jobs, WorkSpec(server="copies", labels=labels, reuse_mask=True))
    result, parts = streams.go(task, jobs)
    streams.assert_same(task, result, parts, streams.alone(task, jobs))
    assert result.batches == 9


def test_a_model_in_half_precision_crosses_as_in_one_process(streams):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        half = base_of(deepcopy(streams.base.network).to(torch.bfloat16))
    jobs = [streams.job(0, 1), streams.job(1, 3)]
    task = replace(streams.task(jobs, WorkSpec()), base=half)
    result, _ = streams.go(task, jobs)
    reference = streams.alone(task, jobs)
    np.testing.assert_allclose(result.log.losses, reference.losses, rtol=1e-2)
    np.testing.assert_allclose(result.log.up_bytes, reference.up_bytes, rtol=0.02)


@pytest.mark.parametrize(("labels", "pass_s"), [("travel", 1.0), ("stay", 2.0)])
def test_the_servers_seconds_are_those_that_it_computes_by_the_blocks_left_to_it(
    streams, labels, pass_s
):
    """A second passes at every look at the clock; where labels stay, one of three is a wait."""
    ticks = count()
    jobs = [streams.job(0, 1), streams.job(1, 3)]
    ticking = replace(streams, server=StreamServer(clock=lambda: float(next(ticks))))
    result, _ = ticking.go(ticking.task(jobs, WorkSpec(labels=labels)), jobs)
    ticking.server.close()
    np.testing.assert_allclose(result.server_s, np.array([0.75, 0.25]) * 3 * pass_s)


class Dies(DeviceEnd):
    """Its process ends after the first forward pass, before the gradient comes."""

    def learn(self, payload, **part):
        raise TrainingError("killed")


def test_with_a_copy_each_nobody_waits_for_another(streams):
    is_done, waited = threading.Event(), []

    class First(DeviceEnd):
        def adapters(self):
            is_done.set()
            return super().adapters()

    class After(DeviceEnd):
        def send(self, step, **part):
            waited.append(is_done.wait(20))
            return super().send(step, **part)

    jobs = [streams.job(0, 1), streams.job(1, 2)]
    task = streams.task(jobs, WorkSpec(server="copies"))
    result, parts = streams.go(task, jobs, kinds={0: First, 1: After})
    assert waited == [True] * 3
    streams.assert_same(task, result, parts, streams.alone(task, jobs))


def test_a_device_that_dies_leaves_other_copies_as_they_are(streams):
    jobs = [streams.job(0, 1), streams.job(1, 2), streams.job(2, 3)]
    task = streams.task(jobs, WorkSpec(server="copies"))
    result, parts = streams.go(task, jobs, kinds={1: Dies})
    assert result.steps == (3, 1, 3)
    outcomes = streams.joined(task, result, parts)
    assert [outcome.status for outcome in outcomes] == ["ok", "refused", "ok"]
    reference = streams.alone(task, [jobs[0], jobs[2]])
    for one, other in zip((outcomes[0], outcomes[2]), reference.outcomes, strict=True):
        for name, tensor in one.update.adapters.items():
            torch.testing.assert_close(tensor, other.update.adapters[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("labels", ["travel", "stay"])
def test_a_sequential_server_is_that_of_one_process(streams, labels):
    jobs = [streams.job(0, 1), streams.job(1, 3), streams.job(2, 2)]
    task = streams.task(jobs, WorkSpec(server="sequential", labels=labels))
    result, parts = streams.go(task, jobs)
    reference = streams.alone(task, jobs)
    assert reference.order != (0, 1, 2)
    assert result.order == reference.order
    streams.assert_same(task, result, parts, reference)
    assert result.batches == 9


def test_the_turn_of_who_died_goes_to_the_next_even_before_it_has_come():
    died, next_, waits = (SplitSession(n, n, 3, new_token()) for n in range(3))
    table = SessionTable(1, 0, (died, next_, waits), StreamTiming(window_s=5.0), 1 << 20)
    outbox = Outbox()
    assert not table.join(died, outbox)
    table.leave(died, outbox, in_order=False)
    assert not table.join(waits, Outbox())
    waits.slot = StepMessage(Kind.ACTIVATION, 1, 0, 0, 2)
    turns = turns_of(table.sessions, [0, 1, 2])
    now = table.began_at
    assert turns.choose(table, first_at=now, now=now) == now + 5.0
    assert turns.choose(table, first_at=now, now=now + 5.0) == [waits]
    assert [session.column for session in turns.queue] == [2, 0, 1]


def test_who_dies_in_its_turn_stalls_nobody(streams):
    jobs = [streams.job(0, 1), streams.job(1, 2), streams.job(2, 3)]
    task = streams.task(jobs, WorkSpec(server="sequential"))
    first = streams.alone(task, jobs).order[0]
    began = time.monotonic()
    result, parts = streams.go(task, jobs, kinds={first: Dies})
    assert time.monotonic() - began < 10
    assert result.steps == tuple(1 if place == first else 3 for place in range(3))
    outcomes = streams.joined(task, result, parts)
    reference = streams.alone(task, jobs, drops={first: 0})
    for one, other in zip(outcomes, reference.outcomes, strict=True):
        assert one.status == other.status == ("refused" if one.device == first else "ok")
        if other.update is not None:
            for name, tensor in one.update.adapters.items():
                expected = other.update.adapters[name]
                torch.testing.assert_close(tensor, expected, atol=1e-5, rtol=1e-4)


def late_for(others, step):
    """Return ends: one that does a step only when all others are done, and one of the others."""
    done = threading.Semaphore(0)

    class Other(DeviceEnd):
        def adapters(self):
            done.release()
            return super().adapters()

    class Late(DeviceEnd):
        def send(self, at, **part):
            if at == step and not all(done.acquire(timeout=20) for _ in range(others)):
                raise TrainingError("the others wait for this device")
            return super().send(at, **part)

    return Late, Other


@pytest.mark.parametrize("step", [0, 1])
def test_who_is_late_in_its_turn_is_served_after_the_others(streams, step):
    jobs = [streams.job(0, 1), streams.job(1, 2), streams.job(2, 3)]
    task = streams.task(jobs, WorkSpec(server="sequential"), answer_s=0.5)
    first = streams.alone(task, jobs).order[0]
    late, other = late_for(2, step)
    result, parts = streams.go(task, jobs, kinds=dict.fromkeys(range(3), other) | {first: late})
    assert result.steps == (3, 3, 3)
    assert result.order.index(first) == (0 if step else 2)
    assert [outcome.status for outcome in streams.joined(task, result, parts)] == ["ok"] * 3


def test_who_comes_late_for_its_turn_is_served_after_the_others(streams):
    jobs = [streams.job(0, 1), streams.job(1, 2), streams.job(2, 3)]
    task = streams.task(jobs, WorkSpec(server="sequential"), window_s=0.2)
    first = streams.alone(task, jobs).order[0]
    result, _ = streams.go(task, jobs, after_s={first: 3.0})
    assert result.steps == (3, 3, 3)
    assert result.order[-1] == first


@pytest.mark.parametrize("server", ["shared", "sequential"])
def test_what_was_learnt_until_the_deadline_counts(streams, server):
    class Waits(DeviceEnd):
        def send(self, step, **part):
            time.sleep(0.8)
            return super().send(step, **part)

    jobs = [streams.job(0, 1, steps=9), streams.job(1, 2, steps=1)]
    task = streams.task(jobs, WorkSpec(server=server), deadline_s=4.0)
    began = time.monotonic()
    result, parts = streams.go(task, jobs, kinds={0: Waits})
    assert time.monotonic() - began < 4.0
    steps = parts[0].steps
    assert 1 <= steps < 9
    assert result.steps[0] == steps
    one, other = streams.joined(task, result, parts)
    assert (one.status, other.status) == ("ok", "ok")
    assert one.update.part == steps / 9
    assert one.samples == steps * 2
    shorter = streams.task([streams.job(0, 1, steps=steps), jobs[1]], WorkSpec(server=server))
    reference = streams.alone(shorter, [streams.job(0, 1, steps=steps), jobs[1]])
    for name, tensor in one.update.adapters.items():
        expected = reference.outcomes[0].update.adapters[name]
        torch.testing.assert_close(tensor, expected, atol=1e-5, rtol=1e-4)


def test_a_step_in_flight_at_the_deadline_is_given_up(streams):
    class Hangs(DeviceEnd):
        def send(self, step, **part):
            time.sleep(4.0 if step == 2 else 0.0)
            return super().send(step, **part)

    jobs = [streams.job(0, 1, steps=2), streams.job(1, 2)]
    task = streams.task(jobs, WorkSpec(), deadline_s=3.5)
    result, parts = streams.go(task, jobs, kinds={1: Hangs})
    assert result.steps == (2, 2)
    assert parts[1].steps == 2
    one, other = streams.joined(task, result, parts)
    assert (one.update.part, other.update.part) == (1.0, 2 / 3)


@pytest.mark.parametrize("server", ["shared", *(one for one in ("copies", "sequential"))])
@pytest.mark.parametrize("codec", [CodecSpec(), CodecSpec("topk", keep=0.5, bits=8)])
def test_micro_batches_add_up_to_the_batch(streams, server, codec):
    workload = replace(streams.workload, batch=4, micro_batches=2)
    there = replace(streams, workload=workload)
    jobs = [there.job(0, 1, codec=codec), there.job(1, 3, codec=codec), there.job(2, 1, steps=2)]
    task = there.task(jobs, WorkSpec(server=server, reuse_mask=True))
    result, parts = there.go(task, jobs)
    whole = there.alone(task, jobs)
    is_exact = codec.kind == "identity"
    np.testing.assert_allclose(result.log.losses, whole.losses, rtol=1e-4 if is_exact else 0.02)
    assert result.batches == (8 if server != "shared" else 3)
    assert result.steps == (3, 3, 2)
    for one, other in zip(there.joined(task, result, parts), whole.outcomes, strict=True):
        assert one.status == "ok"
        for name, tensor in other.update.adapters.items() if is_exact else ():
            torch.testing.assert_close(one.update.adapters[name], tensor, atol=1e-4, rtol=1e-3)
    for place, part in parts.items():
        seen = result.log.up_bytes[: len(part.up_bytes), place]
        np.testing.assert_array_equal(part.up_bytes, seen)


def test_the_second_micro_batch_is_sent_before_the_first_is_answered(streams):
    there = replace(streams, workload=replace(streams.workload, micro_batches=2))
    calls = []

    class Notes(DeviceEnd):
        def send(self, step, **part):
            calls.append(("send", part["part"]))
            return super().send(step, **part)

        def learn(self, payload, **part):
            calls.append(("learn", part["part"]))
            super().learn(payload, **part)

    jobs = [there.job(0, 1, steps=1)]
    there.go(there.task(jobs, WorkSpec()), jobs, kinds={0: Notes})
    assert calls == [("send", 0), ("send", 1), ("learn", 0), ("learn", 1)]


def test_a_device_that_keeps_the_rest_of_its_step_is_let_go(streams):
    there = replace(streams, workload=replace(streams.workload, micro_batches=2))

    class Keeps(DeviceEnd):
        def send(self, step, **part):
            time.sleep(3.0 if part["part"] else 0.0)
            return super().send(step, **part)

    jobs = [there.job(0, 1), there.job(1, 2)]
    task = there.task(jobs, WorkSpec(), answer_s=0.3, rejoin_s=0.1)
    result, parts = there.go(task, jobs, kinds={1: Keeps})
    assert result.steps[0] == parts[0].steps == 3
    assert result.broken[1] >= 1
