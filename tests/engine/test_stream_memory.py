"""Samples that both ends of a stream remember: sent once, or as differences, and never mistaken."""

from dataclasses import replace

import numpy as np
import pytest

from airtune.cost.most import LISTED_BYTES
from airtune.errors import CodecError
from airtune.plan import CodecSpec, WorkSpec
from airtune.split import CutMemory, DeviceEnd

grpc = pytest.importorskip(
    "grpc", reason="grpcio is not installed: pip install 'airtune[federation]'"
)

from airtune.engine.stream import StreamServer  # noqa: E402
from airtune.split.memory import Held, agree, list_of  # noqa: E402
from airtune.split.samples import HEAD_BYTES, take_samples  # noqa: E402

FROZEN = WorkSpec(device_frozen=True)
DEADZONE = CodecSpec("deadzone", step=0.75, predict=True)
EXACT = CodecSpec(predict=True)


@pytest.fixture
def run(request):
    """The name of a run that no other test has."""
    return request.node.name


@pytest.fixture
def anew(streams):
    """The same with a server that has started anew."""
    serving = StreamServer()
    yield replace(streams, server=serving)
    serving.close()


@pytest.mark.parametrize(
    ("work", "codec"),
    [
        (FROZEN, None),
        (FROZEN, CodecSpec("topk", keep=0.5, bits=8)),
        (replace(FROZEN, labels="stay"), None),
        (replace(FROZEN, server="copies"), None),
        (replace(FROZEN, server="sequential"), None),
        (WorkSpec(), DEADZONE),
        (
            WorkSpec(labels="stay", reuse_mask=True),
            CodecSpec("topk", keep=0.5, bits=8, predict=True),
        ),
        (WorkSpec(server="sequential"), EXACT),
    ],
)
def test_rounds_that_remember_are_those_of_one_process(streams, run, work, codec):
    jobs = [streams.job(0, 1, codec=codec), streams.job(1, 3, codec=codec)]
    theirs, ours = {0: {}, 1: {}}, CutMemory()
    for round in range(3):
        task = streams.task(jobs, work, round=round, run=run)
        known = len(theirs[0])
        result, parts = streams.go(task, jobs, memory=theirs)
        reference = streams.alone(task, jobs, memory=ours)
        streams.assert_same(task, result, parts, reference)
        assert (result.listed_bytes == LISTED_BYTES * known).all()
    assert len(theirs[0]) == 4


def test_a_frozen_part_sends_numbers_once_all_is_known(streams, run):
    jobs, memory = [streams.job(0, 2)], {0: {}}
    first, _ = streams.go(streams.task(jobs, FROZEN, run=run), jobs, memory=memory)
    second, _ = streams.go(streams.task(jobs, FROZEN, round=1, run=run), jobs, memory=memory)
    assert (first.log.up_bytes[:2] > 500).all()
    assert (second.log.up_bytes == HEAD_BYTES + 4 * 2).all()
    assert not second.log.computed.any()
    assert not second.log.down_bytes.any()


@pytest.mark.parametrize(("work", "codec"), [(FROZEN, None), (WorkSpec(), DEADZONE)])
@pytest.mark.parametrize("who", ["device", "server", "run"])
def test_who_starts_anew_has_samples_sent_anew(streams, anew, run, work, codec, who):
    jobs, memory = [streams.job(0, 2, codec=codec)], {0: {}}
    streams.go(streams.task(jobs, work, run=run), jobs, memory=memory)
    there = anew if who == "server" else streams
    task = there.task(jobs, work, round=1, run=f"{run} again" if who == "run" else run)
    if who == "device":
        memory = {0: {}}
    result, parts = there.go(task, jobs, memory=memory)
    reference = there.alone(task, jobs, memory=CutMemory())
    streams.assert_same(task, result, parts, reference)


def test_other_adapters_below_a_frozen_cut_have_samples_sent_anew(streams, run):
    jobs, memory = [streams.job(0, 2)], {0: {}}
    task = streams.task(jobs, FROZEN, run=run)
    streams.go(task, jobs, memory=memory)
    other = replace(task.state, adapters={k: v + 0.1 for k, v in task.state.adapters.items()})
    task = streams.task(jobs, FROZEN, round=1, run=run, state=other)
    result, parts = streams.go(task, jobs, memory=memory)
    streams.assert_same(task, result, parts, streams.alone(task, jobs, memory=CutMemory()))


def broken_in(what):
    """Return an end that loses its connection in its second step, once."""

    class Stumbles(DeviceEnd):
        has_fallen = False

        def send(self, step, **part):
            made = super().send(step, **part)
            self._fall(what == "send" and step == 1)
            return made

        def learn(self, payload, **part):
            self._fall(what.startswith("learn") and self._step == (2 if "last" in what else 1))
            super().learn(payload, **part)

        def _fall(self, falls):
            if falls and not self.has_fallen:
                self.has_fallen = True
                error = grpc.RpcError()
                error.code, error.details = lambda: grpc.StatusCode.UNAVAILABLE, lambda: "broken"
                raise error

    return Stumbles


@pytest.mark.parametrize("work", [FROZEN, WorkSpec(labels="stay", device_frozen=True), WorkSpec()])
@pytest.mark.parametrize("what", ["send", "learn", "learn the last"])
def test_a_broken_stream_leaves_both_ends_agreed(streams, run, what, work):
    codec = None if work.device_frozen else EXACT
    jobs, memory = [streams.job(0, 2, codec=codec)], {0: {}}
    task = streams.task(jobs, work, run=run, rejoin_s=10.0)
    result, parts = streams.go(task, jobs, kinds={0: broken_in(what)}, memory=memory)
    assert result.steps == (3,)
    assert parts[0].connections == 2
    if what == "send":  # after "learn", the device lacks a step that the server has
        expected = streams.alone(task, jobs, memory=CutMemory())
        np.testing.assert_allclose(result.log.losses, expected.losses, rtol=1e-4)
        assert result.listed_bytes[0] == parts[0].listed_bytes
    task = streams.task(jobs, work, round=1, run=run)
    result, _ = streams.go(task, jobs, memory=memory)
    expected = streams.alone(task, jobs, memory=CutMemory())
    np.testing.assert_allclose(result.log.losses, expected.losses, rtol=1e-4)
    if work.device_frozen:
        assert not result.log.computed.any()


def test_a_device_forgets_what_the_server_lacks_or_has_from_another_message():
    held = {number: Held(100 + number, np.zeros((1, 2)), np.zeros(0)) for number in range(3)}
    ours = dict(held)
    agree(ours, list_of({0: held[0], 1: replace(held[1], stamp=7), 5: held[2]}))
    assert list(ours) == [0]
    agree(ours, b"")
    assert not ours
    with pytest.raises(CodecError, match="12 bytes each, got 13"):
        agree(ours, bytes(13))


@pytest.fixture
def told(streams):
    """Two messages of one device, the second of samples that are known, and the server's memory."""
    task = streams.task([streams.job(0, 2, steps=4)], FROZEN)
    end, held = DeviceEnd(task.context, {0: streams.job(0, 2, steps=4)}), {}
    messages = [end.send(step)[0] for step in range(4)]

    def take(message, *, memory=held):
        return take_samples(
            message,
            memory,
            examples=4,
            shape=task.base.shape,
            workload=task.workload,
            labels_stay=False,
            again=False,
        )

    take(messages[0])
    take(messages[1])
    return messages[0], messages[2], held, take


def with_numbers(message, numbers):
    told = np.array(numbers, "<i4").tobytes()
    beside = message.beside
    return replace(message, beside=beside[:HEAD_BYTES] + told + beside[HEAD_BYTES + 8 :])


LIES = {
    "samples that nobody sent": (lambda new, old: (with_numbers(new, [-1, -2]), {}), "does not have"),
    "a sample that it has not": (lambda new, old: (with_numbers(new, [0, 9]), None), "sample 9"),
    "more new than there is": (
        lambda new, old: (replace(new, beside=new.beside[:12] + b"\xff\xff\xff\x7f" + new.beside[16:]),
                          None), "bytes of new samples"),
    "less than its numbers": (
        lambda new, old: (replace(new, beside=new.beside[:20]), None), "20 bytes beside it"),
    "bytes that nothing names": (
        lambda new, old: (replace(old, payload=bytes(9)), None), "samples that are not sent"),
    "no lengths": (
        lambda new, old: (replace(new, beside=new.beside[: HEAD_BYTES + 8]), None), "lengths must be 2"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_message_that_is_not_of_its_samples_is_refused(told, lie):
    new, old, held, take = told
    make, says = LIES[lie]
    message, memory = make(new, old)
    memory = dict(held) if memory is None else memory
    before = dict(memory)
    with pytest.raises(CodecError, match=says):
        take(message, memory=memory)
    assert memory == before


def test_a_known_sample_of_another_message_is_refused(told):
    _, old, held, take = told
    take(old, memory=dict(held))
    other = {number: replace(item, stamp=item.stamp ^ 1) for number, item in held.items()}
    with pytest.raises(CodecError, match="from the same message"):
        take(old, memory=other)
