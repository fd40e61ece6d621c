"""The other servers of split rounds over gRPC: a copy a device, and one device after the other."""

import threading
import time

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from airtune.errors import CodecError, MethodError, TrainingError
from airtune.model.base import base_of
from airtune.model.batch import Sequences
from airtune.model.state import initial_state
from airtune.plan import Assignment, CodecSpec, Workload, WorkSpec
from airtune.work.split import SplitJob, split_round
from airtune.work.train import TrainSettings

pytest.importorskip("grpc", reason="grpcio is not installed: pip install 'airtune[flower]'")

from airtune.engine.stream import (
    Connection,
    DeviceEnd,
    DevicePart,
    SplitTask,
    StreamServer,
    Timing,
    join_round,
    run_device,
)

WORKLOAD = Workload(batch=2, tokens=16, local_steps=3, rank=4, lora_targets=("q_proj", "v_proj"))
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
    serving = StreamServer()
    yield serving
    serving.close()


def job(device, cut, *, codec=None, steps=3):
    draw = np.random.default_rng(device)
    rows = tuple(draw.integers(3, 61, draw.integers(5, 15)) for _ in range(4))
    row = Assignment(device, 0.0, 0.0, 4, cut, 1.0, steps, codec or CodecSpec())
    return SplitJob(device, row, Sequences(rows, rows), 1.0 + device)


def task_of(base, jobs, work, **timing):
    return SplitTask(
        RUN, 0, base, initial_state(base, WORKLOAD, 0), tuple(j.row for j in jobs),
        tuple(j.weight for j in jobs), TrainSettings(learning_rate=1e-2), work, WORKLOAD, 0,
        Timing(**({"window_s": float("inf"), "rejoin_s": 0.5, "deadline_s": 60.0} | timing)),
    )  # fmt: skip


def go(server, task, jobs, *, kinds=None, after_s=None):
    """Run devices in threads; return the server's round and each device's, or its error.

    `kinds` and `after_s`, by device: what stands in for `DeviceEnd`, and how late it comes.
    """
    opened, parts = server.open(task), {}

    def run(one):
        time.sleep((after_s or {}).get(one.device, 0.0))
        end = (kinds or {}).get(one.device, DeviceEnd)(
            task.base, task.state, one, settings=task.settings, work=task.work,
            workload=task.workload, seed=task.seed, round=task.round,
        )  # fmt: skip
        target, token = f"127.0.0.1:{server.port}", opened.tokens[one.device]
        try:
            parts[one.device] = run_device(end, Connection(target, token, RUN, deadline_s=30.0))
        except (TrainingError, CodecError) as error:
            parts[one.device] = error

    threads = [threading.Thread(target=run, args=(one,)) for one in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return opened.wait(60), parts


def joined(task, result, parts):
    return join_round(task, result, {
        device: DevicePart(part.adapters, part.head, part.steps)
        for device, part in parts.items() if not isinstance(part, Exception)
    })  # fmt: skip


def alone(task, jobs, **more):
    return split_round(
        task.base, task.state, jobs, settings=task.settings, work=task.work,
        workload=task.workload, seed=0, round=task.round, **more,
    )  # fmt: skip


def assert_same(task, result, parts, reference):
    """Hold a round over streams against one in this process, device by device."""
    for one, other in zip(joined(task, result, parts), reference.outcomes, strict=True):
        assert (one.status, other.status) == ("ok", "ok")
        for name, tensor in one.update.adapters.items():
            torch.testing.assert_close(tensor, other.update.adapters[name], atol=1e-5, rtol=1e-4)
    for name, tensor in result.adapters.items():
        torch.testing.assert_close(tensor, reference.server[name], atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(result.losses, reference.losses, rtol=1e-4)
    np.testing.assert_allclose(result.up_bytes, reference.up_bytes, rtol=0.02)
    np.testing.assert_allclose(result.down_bytes, reference.down_bytes, rtol=0.02)


@pytest.mark.parametrize("labels", ["travel", "stay"])
@pytest.mark.parametrize("codec", [CodecSpec(), CodecSpec("topk", keep=0.5, bits=8)])
def test_copies_are_those_of_one_process(server, base, labels, codec):
    jobs = [job(0, 1, codec=codec), job(1, 3, codec=codec), job(2, 1, codec=codec)]
    task = task_of(base, jobs, WorkSpec(server="copies", labels=labels, reuse_mask=True))
    result, parts = go(server, task, jobs)
    assert_same(task, result, parts, alone(task, jobs))
    assert result.batches == 9


class Dies(DeviceEnd):
    """Its process ends after the first forward pass, before the gradient comes."""

    def learn(self, payload):
        raise TrainingError("killed")


def test_with_a_copy_each_nobody_waits_for_another(server, base):
    is_done, waited = threading.Event(), []

    class First(DeviceEnd):
        def adapters(self):
            is_done.set()
            return super().adapters()

    class After(DeviceEnd):
        def send(self, step):
            waited.append(is_done.wait(20))
            return super().send(step)

    jobs = [job(0, 1), job(1, 2)]
    task = task_of(base, jobs, WorkSpec(server="copies"))
    result, parts = go(server, task, jobs, kinds={0: First, 1: After})
    assert waited == [True] * 3
    assert_same(task, result, parts, alone(task, jobs))


def test_a_device_that_dies_leaves_other_copies_as_they_are(server, base):
    jobs = [job(0, 1), job(1, 2), job(2, 3)]
    task = task_of(base, jobs, WorkSpec(server="copies"))
    result, parts = go(server, task, jobs, kinds={1: Dies})
    assert result.steps == (3, 1, 3)
    outcomes = joined(task, result, parts)
    assert [outcome.status for outcome in outcomes] == ["ok", "refused", "ok"]
    reference = alone(task, [jobs[0], jobs[2]])
    for one, other in zip((outcomes[0], outcomes[2]), reference.outcomes, strict=True):
        for name, tensor in one.update.adapters.items():
            torch.testing.assert_close(tensor, other.update.adapters[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("labels", ["travel", "stay"])
def test_a_sequential_server_is_that_of_one_process(server, base, labels):
    jobs = [job(0, 1), job(1, 3), job(2, 2)]
    task = task_of(base, jobs, WorkSpec(server="sequential", labels=labels))
    result, parts = go(server, task, jobs)
    reference = alone(task, jobs)
    assert reference.order != (0, 1, 2)
    assert result.order == reference.order
    assert_same(task, result, parts, reference)
    assert result.batches == 9


def test_who_dies_in_its_turn_stalls_nobody(server, base):
    jobs = [job(0, 1), job(1, 2), job(2, 3)]
    task = task_of(base, jobs, WorkSpec(server="sequential"))
    first = alone(task, jobs).order[0]
    began = time.monotonic()
    result, parts = go(server, task, jobs, kinds={first: Dies})
    assert time.monotonic() - began < 10
    assert result.steps == tuple(1 if place == first else 3 for place in range(3))
    outcomes = joined(task, result, parts)
    reference = alone(task, jobs, drops={first: 0})
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
        def send(self, at):
            if at == step and not all(done.acquire(timeout=20) for _ in range(others)):
                raise TrainingError("the others wait for this device")
            return super().send(at)

    return Late, Other


@pytest.mark.parametrize("step", [0, 1])
def test_who_is_late_in_its_turn_is_served_after_the_others(server, base, step):
    jobs = [job(0, 1), job(1, 2), job(2, 3)]
    task = task_of(base, jobs, WorkSpec(server="sequential"), answer_s=0.5)
    first = alone(task, jobs).order[0]
    late, other = late_for(2, step)
    result, parts = go(server, task, jobs, kinds=dict.fromkeys(range(3), other) | {first: late})
    assert result.steps == (3, 3, 3)
    assert result.order.index(first) == (0 if step else 2)
    assert [outcome.status for outcome in joined(task, result, parts)] == ["ok"] * 3


def test_who_comes_late_for_its_turn_is_served_after_the_others(server, base):
    jobs = [job(0, 1), job(1, 2), job(2, 3)]
    task = task_of(base, jobs, WorkSpec(server="sequential"), window_s=0.2)
    first = alone(task, jobs).order[0]
    result, _ = go(server, task, jobs, after_s={first: 3.0})
    assert result.steps == (3, 3, 3)
    assert result.order[-1] == first


def test_a_device_part_is_not_handed_over_a_stream(server, base):
    with pytest.raises(MethodError, match="hand_over, as streams carry no adapters"):
        server.open(task_of(base, [job(0, 1)], WorkSpec(server="sequential", hand_over=True)))
