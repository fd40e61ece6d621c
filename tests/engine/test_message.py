"""Messages are believed only as far as they can be checked."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.engine.message import (
    SCHEMA,
    VERSION,
    Reply,
    RunSetup,
    Task,
    open_reply,
    open_task,
    pack_tensors,
    seal_reply,
    seal_task,
    unpack_tensors,
)
from airtune.errors import CodecError, MismatchError
from airtune.plan import Assignment, CodecSpec, Workload, WorkSpec
from airtune.wire.message import Message
from airtune.wire.versions import series_of
from airtune.work.jobs import TrainSettings

SETUP = RunSetup(
    recipe="{}", fingerprint="f", tokenizer="t",
    workload=Workload(batch=2, tokens=8, local_steps=1, rank=4, lora_targets=("q", "v")),
    work=WorkSpec(), train=TrainSettings(), seed=3, devices=2, labels=("yes", "no"),
)  # fmt: skip
ROW = Assignment(1, 0.5, 0.25, 4, 2, 0.1, 3, CodecSpec("topk", keep=0.1, bits=8))
TASK = Task("train", 2**55 + 1, 4, 1, "gate-1", "abcd", SETUP, row=ROW, counted=3)
REPLY = Reply("train", 2**55 + 1, 4, 1, "gate-1", "abcd", figures={"loss_last": 1.25}, samples=8)


def test_a_task_comes_back_as_it_was_sent() -> None:
    blobs = {"state": pack_tensors({"a": torch.arange(6.0).reshape(2, 3)})}
    task, found = open_task(seal_task(TASK, blobs))
    assert replace(task, blobs=()) == TASK
    assert found == blobs


def test_a_reply_comes_back_as_it_was_sent() -> None:
    reply, _ = open_reply(seal_reply(REPLY), TASK)
    assert reply == REPLY


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"run": 1}, "run"),
        ({"round": 3}, "round"),
        ({"device": 0}, "device"),
        ({"name": "gate-2"}, "name"),
        ({"kind": "measure"}, "task"),
        ({"ticket": "efgh"}, "was sent before"),
    ],
)
def test_an_answer_to_something_else_is_refused(changed: dict[str, object], word: str) -> None:
    with pytest.raises(MismatchError, match=word):
        open_reply(seal_reply(replace(REPLY, **changed)), TASK)


def test_another_schema_names_both_versions() -> None:
    with pytest.raises(MismatchError, match=r"schema 3.*schema 2; install the same version"):
        open_task(seal_task(replace(TASK, schema=3)))


def test_messages_of_one_series_of_versions_are_read_and_no_others() -> None:
    major, minor = series_of(VERSION)
    reply = replace(REPLY, version=f"{major}.{minor}.99")
    assert open_reply(seal_reply(reply), TASK)[0] == reply
    for other in (f"{major}.{minor + 1}.0", f"{major + 1}.{minor}.0", "none"):
        with pytest.raises(MismatchError, match="install the same version"):
            open_reply(seal_reply(replace(REPLY, version=other)), TASK)


def test_a_truncated_part_is_refused() -> None:
    sealed = seal_task(TASK, {"state": b"0123456789"})
    with pytest.raises(CodecError, match="has 9 of 10 bytes"):
        open_task(Message(sealed.header, (sealed.blobs[0][:-1],)))


def test_a_missing_part_is_refused() -> None:
    sealed = seal_task(TASK, {"state": b"0123456789"})
    with pytest.raises(CodecError, match="lists 1 parts and has 0"):
        open_task(Message(sealed.header))


def test_a_changed_part_is_refused() -> None:
    sealed = seal_task(TASK, {"state": b"0123456789"})
    with pytest.raises(CodecError, match="checksum"):
        open_task(Message(sealed.header, (b"0123456780",)))


def test_an_oversize_answer_is_refused_before_it_is_read() -> None:
    sealed = seal_reply(REPLY, {"A": bytes(2000)})
    with pytest.raises(CodecError, match="at most 1000 can answer"):
        open_reply(sealed, TASK, max_bytes=1000)


def test_a_header_without_its_fields_is_refused() -> None:
    with pytest.raises(CodecError, match="malformed"):
        open_reply(Message(f'{{"schema": {SCHEMA}, "version": "{VERSION}"}}'.encode()), TASK)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_no_header_of_noise_is_taken(noise: bytes) -> None:
    with pytest.raises((CodecError, MismatchError)):
        open_task(Message(noise))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_blob_of_tensors_is_refused_or_whole(data: st.DataObject) -> None:
    content = bytearray(pack_tensors({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}))
    length = int.from_bytes(content[:8], "little")
    place = data.draw(st.integers(0, 8 + length - 1))
    content[place] = data.draw(st.integers(0, 255))
    try:
        found = unpack_tensors(bytes(content))
    except CodecError:
        return
    assert sum(tensor.nbytes for tensor in found.values()) == 8 * 4
