"""An answer that is missing, damaged or not what was asked costs one device its round."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter
from tests.deploy.conftest import run_with

from airtune.calibrate import store
from airtune.deploy.agent.device import Device, DeviceSettings
from airtune.deploy.federation import run as federation
from airtune.deploy.federation.orders import Order
from airtune.deploy.federation.run import run_federation
from airtune.engine.message import Reply, pack_tensors, seal_reply, unpack_tensors
from airtune.errors import (
    CheckpointError,
    ConnectionFailedError,
    InfeasibleError,
    MismatchError,
    RecipeError,
    TrainingError,
)
from airtune.plan import Measurements, PrunedRounds
from airtune.run import choose_method
from airtune.run.measurement import table_path
from airtune.wire.message import Message


@pytest.fixture
def quick(recipe: Callable[..., Any]) -> Any:
    return recipe(**{"train.rounds": 1, "train.local_steps": 1, "data.limit": 30})


def test_a_run_on_the_real_clock_has_what_devices_measured(
    quick: Any, nodes: Any, tmp_path: Path
) -> None:
    record, told = run_with(quick, nodes(["a", "b"]), tmp_path)
    assert record.results is not None
    assert list(record.devices["name"]) == ["a", "b"]
    assert list(record.devices["status"]) == ["ok", "ok"]
    np.testing.assert_allclose(record.devices["finish_s"], 0.5)
    assert (record.devices["compute_s"] > 0).all()
    assert record.header["engine"] == {"kind": "remote", "clock": "real", "devices": ["a", "b"]}
    assert told[-1]["result"]["test"]["loss"] > 0


def test_a_device_that_starts_again_is_sent_the_second_moments_once_more(
    recipe: Callable[..., Any], nodes: Any, tmp_path: Path
) -> None:
    """It loses one round, in which the server took it to hold them still."""
    asked = recipe(
        **{
            "method.name": "jcpba",
            "method.budget": 0.25,
            "train.mend": "least-squares",
            "train.rounds": 4,
            "evaluation.every": 9,
        }
    )
    there, trained = nodes(["a", "b"]), []

    def restart(device: int, reply: Message) -> Message:
        if device == 1 and b'"kind":"train"' in reply.header:
            trained.append(reply)
            if len(trained) == 1:
                there.mail.devices[1] = Device(DeviceSettings(data="recipe", compute="cpu"))
        return reply

    there.mail.bend = restart
    record, _ = run_with(asked, there, tmp_path)
    mine = record.devices["device"] == 1
    assert record.devices["status"][mine].tolist() == ["ok", "failed", "ok", "ok"]
    assert "second moments" in record.devices["reason"][mine][1]
    came = [
        b'"moments",' in messages[1].header
        for messages in there.mail.sent
        if 1 in messages and b'"kind":"train"' in messages[1].header
    ]
    assert came == [True, False, True, False]
    assert record.rounds[0]["setup"]["download_bytes"] == 0.0
    asked_bytes = record.devices["download_bytes"][record.devices["round"] == 0]
    assert record.rounds[0]["download_bytes"] == asked_bytes.sum()


def test_a_run_in_which_no_device_sends_second_moments_ends_with_the_reason(
    recipe: Callable[..., Any], nodes: Any, tmp_path: Path
) -> None:
    def keep_back(device: int, reply: Message) -> Message:
        header = json.loads(reply.header)
        header["blobs"] = [part for part in header["blobs"] if part[0] != "moments"]
        return Message(json.dumps(header).encode(), reply.blobs[: len(header["blobs"])])

    there = nodes(["a", "b"])
    there.mail.bend = keep_back
    asked = recipe(**{"method.name": "jcpba", "method.budget": 0.25, "train.mend": "least-squares"})
    with pytest.raises(TrainingError, match=r"no device sent second moments.*train\.mend to mean"):
        run_with(asked, there, tmp_path)


def test_devices_time_their_own_steps_and_one_that_claims_too_many_is_refused(
    recipe: Callable[..., Any], nodes: Any, tmp_path: Path
) -> None:
    def boast(device: int, reply: Message) -> Message:
        header = re.sub(rb'"steps":[\d.]+', b'"steps":99.0', reply.header)
        return Message(header, reply.blobs) if device == 1 else reply

    there = nodes(["a", "b", "c"])
    there.mail.after_s, there.mail.bend = 3600.0, boast
    asked = recipe(
        **{
            "method.name": "fedspine",
            "method.min_rank": 2,
            "lora.r": 4,
            "train.rounds": 2,
            "train.local_steps": 1,
            "download.kind": "fp16",
        }
    )
    record, _ = run_with(asked, there, tmp_path)
    devices = record.devices
    assert devices["status"].tolist() == ["ok"] * 4 + ["refused", "ok"]
    assert "99.0 steps, between 1 and 4" in devices["reason"][4]
    assert devices["local_steps"][3] in range(1, 5)
    assert f"did {devices['local_steps'][3]} steps" in devices["reason"][3]


def _cut_off(device: int, reply: Message) -> Message:
    """Truncate what device 1 answers to training."""
    if device != 1 or not reply.blobs:
        return reply
    return Message(reply.header, (reply.blobs[0][:-5], *reply.blobs[1:]))


def _as_another(device: int, reply: Message) -> Message:
    """Have device 1 say that it is device a."""
    if device != 1 or not reply.blobs:
        return reply
    return Message(reply.header.replace(b'"name":"b"', b'"name":"a"'), reply.blobs)


def _huge(device: int, reply: Message) -> Message:
    if device != 1 or not reply.blobs:
        return reply
    return Message(reply.header, (*reply.blobs, bytes(80 << 20)))


def _grown(device: int, reply: Message) -> Message:
    """Have device 1 say that it has more ranks left than it was told."""
    if device != 1:
        return reply
    return Message(reply.header.replace(b'"rank_left":', b'"rank_left":99'), reply.blobs)


@pytest.mark.parametrize(
    ("bend", "why"),
    [
        (_cut_off, "truncated"),
        (_as_another, "'a', 'b' was asked"),
        (_huge, "at most"),
        (_grown, "rank left must be between 0 and"),
    ],
)
def test_a_device_that_lies_is_refused_and_the_others_count(
    bend: Any, why: str, quick: Any, nodes: Any, tmp_path: Path
) -> None:
    fleet = nodes(["a", "b"])
    fleet.mail.bend = bend
    record, _ = run_with(quick, fleet, tmp_path)
    assert list(record.devices["status"]) == ["ok", "refused"]
    assert why in record.devices["reason"][1]


def test_scores_that_are_not_finite_are_not_pooled(
    recipe: Callable[..., Any], nodes: Any, tmp_path: Path
) -> None:
    def without_numbers(device: int, reply: Message) -> Message:
        if device != 1 or b'"kind":"measure"' not in reply.header:
            return reply
        scores = unpack_tensors(reply.blobs[0])
        scores["importance/channels"][0, 0] = float("nan")
        header = TypeAdapter(Reply).validate_json(reply.header)
        return seal_reply(header, {"importance": pack_tensors(scores)})

    fleet = nodes(["a", "b"])
    fleet.mail.bend = without_numbers
    told = {"method.name": "fedspine", "train.rounds": 1, "train.local_steps": 1, "data.limit": 30}
    record, _ = run_with(recipe(**told), fleet, tmp_path)
    assert list(record.devices["status"]) == ["ok", "ok"]
    (fault,) = record.rounds[0]["setup"]["faults"]
    assert fault.startswith("b: ")
    assert "channels has 1 scores that are not finite" in fault


def test_an_answer_of_the_last_round_is_refused(
    recipe: Callable[..., Any], nodes: Any, tmp_path: Path
) -> None:
    fleet, kept = nodes(["a", "b"]), {}

    def replayed(device: int, reply: Message) -> Message:
        if device == 1 and b'"kind":"train"' in reply.header:
            return kept.setdefault("first", reply)
        return reply

    fleet.mail.bend = replayed
    changed = recipe(**{"train.local_steps": 1, "data.limit": 30})
    record, _ = run_with(changed, fleet, tmp_path)
    assert list(record.devices["status"]) == ["ok", "ok", "ok", "refused"]
    assert "for round 0, 1 was asked" in record.devices["reason"][3]


def test_a_device_with_other_weights_takes_no_part(
    quick: Any, nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import airtune.deploy.agent.holding as device_module

    loaded = device_module.load_held

    def other(*args: Any, **kwargs: Any) -> Any:
        return replace(loaded(*args, **kwargs), fingerprint="0" * 64)

    monkeypatch.setattr(device_module, "load_held", other)
    with pytest.raises(MismatchError, match="holds other weights than the server"):
        run_with(quick, nodes(["a"]), tmp_path)


def test_a_run_waits_where_all_devices_have_left_and_goes_unjudged_where_they_leave_at_its_end(
    recipe: Callable[..., Any], nodes: Any, tmp_path: Path
) -> None:
    there = nodes(["a", "b"])
    mail, send, looks = there.mail, there.mail.send, list[int]()

    def leaving(messages: Any, *, deadline_s: float, more: Any = None) -> Any:
        answers = send(messages, deadline_s=deadline_s, more=more)
        if b'"kind":"train"' in messages[0].header:
            mail.absent = {0, 1}
        return answers

    def online() -> frozenset[int]:
        looks.extend(mail.absent)
        if len(looks) == 16:  # they come back while they are waited for
            mail.absent = set()
        return frozenset({0, 1} - mail.absent)

    mail.online = online
    mail.send = leaving
    asked = recipe(**{"train.rounds": 3, "train.local_steps": 1, "data.limit": 30})
    record, _ = run_with(asked, there, tmp_path)
    assert [line["counts"]["ok"] for line in record.rounds] == [2, 0, 2]
    assert record.rounds[1]["round_s"] < 60.0  # one that had come was not left waiting
    assert record.rounds[2]["validation"] is None
    assert record.results["test"]["loss"] > 0


def test_own_data_of_unlike_size_decide_the_weights(
    recipe: Callable[..., Any], nodes: Any, tmp_path: Path
) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "2+2", "completion": "4"}\n' * 12)
    changed = recipe(**{"data.source": "devices", "data.limit": "null", "train.rounds": 1})
    record, _ = run_with(changed, nodes(["a"], data=str(path)), tmp_path / "runs")
    assert record.header["data"]["device_rows"] == [11]
    assert record.results["test"] == {}


def test_too_few_devices_are_named(quick: Any, nodes: Any, tmp_path: Path) -> None:
    with pytest.raises(ConnectionFailedError, match=r"1 of 2 devices are there .*\(a\)"):
        run_with(quick, nodes(["a"]), tmp_path, devices=2, join_s=0.1)


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ({"name": "untuned"}, "federates nothing"),
        ({"name": "split-sequential"}, "one device to the next.*splitfed-v2"),
        ({"name": "sft", "cut": 9}, "after block 9, but .* at most"),
    ],
)
def test_what_devices_elsewhere_cannot_do_is_refused_before_they_are_asked(
    method: dict[str, Any], why: str, recipe: Callable[..., Any], nodes: Any, tmp_path: Path
) -> None:
    there = nodes(["a"])
    with pytest.raises((RecipeError, InfeasibleError), match=why):
        run_with(
            recipe(**{f"method.{key}": value for key, value in method.items()}), there, tmp_path
        )
    assert there.mail.sent == []


def test_a_run_goes_on_where_it_was_killed(
    recipe: Callable[..., Any], nodes: Any, tmp_path: Path
) -> None:
    changed = recipe(**{"train.local_steps": 1, "data.limit": 30, "train.rounds": 3})
    whole, _ = run_with(changed, nodes(["a", "b"]), tmp_path / "whole")
    fleet, rounds = nodes(["a", "b"]), []

    def killed(**event: Any) -> None:
        if "round" in event:
            rounds.append(event)
            raise KeyError("killed")

    with pytest.raises(KeyError):
        run_federation(Order(changed, tmp_path / "cut", devices=2), fleet, tell=killed)
    [folder] = (tmp_path / "cut").iterdir()
    record, _ = run_with(changed, nodes(["a", "b"]), tmp_path / "cut", resume=folder)
    assert [row["train_loss"] for row in record.rounds] == [
        row["train_loss"] for row in whole.rounds
    ]


def test_what_fails_before_it_has_begun_leaves_no_folder_and_what_has_begun_gets_more_rounds(
    quick: Any, nodes: Any, tmp_path: Path
) -> None:
    told: list[dict[str, Any]] = []
    nobody = Order(quick, tmp_path / "nobody", devices=2, join_s=0.0)
    with pytest.raises(ConnectionFailedError, match="0 of 2 devices"):
        run_federation(nobody, nodes([]), tell=lambda **event: told.append(event))
    assert told[-1] == {"stage": "devices there: 0, needed: 2"}
    assert not list((tmp_path / "nobody").iterdir())
    record, _ = run_with(quick, nodes(["a"]), tmp_path)
    longer, _ = run_with(quick, nodes(["a"]), tmp_path, resume=record.folder, rounds=2)
    assert [row["round"] for row in longer.rounds] == [0, 1]
    with pytest.raises(RecipeError, match="takes more rounds than the 2"):
        run_with(quick, nodes(["a"]), tmp_path, resume=record.folder, rounds=2)


def test_what_is_no_run_is_not_resumed(quick: Any, nodes: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run of a federation"):
        run_with(quick, nodes(["a"]), tmp_path, resume=tmp_path)


def test_a_run_keeps_the_calibration_that_it_began_with(
    recipe: Callable[..., Any], nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = recipe(
        **{
            "method.name": "jcpba",
            "train.rounds": 1,
            "train.local_steps": 1,
            "data.limit": 30,
            "output": str(tmp_path),
        }
    )
    rows = PrunedRounds(0.0, 0.0), PrunedRounds(0.5, 0.2, 0.1)
    found = Measurements("other weights", "measured", pruning=rows)
    path = table_path(changed, choose_method(changed), "pruning")
    path.parent.mkdir()
    store(path, found)
    record, _ = run_with(changed, nodes(["a"]), tmp_path / "other")
    assert "measurements" not in record.header
    weights = record.header["model"]["fingerprint"]
    store(path, replace(found, fingerprint=weights))
    record, _ = run_with(changed, nodes(["a"]), tmp_path / "same")
    assert record.header["measurements"]["pruning"] == [list(row) for row in rows]
    path.unlink()
    met = []
    ready = federation.RemoteWorkers.__init__

    def noted(self: Any, fleet: Any, problem: Any, *args: Any, **kwargs: Any) -> None:
        met.append(problem.pruning)
        ready(self, fleet, problem, *args, **kwargs)

    monkeypatch.setattr(federation.RemoteWorkers, "__init__", noted)
    run_with(changed, nodes(["a"]), tmp_path / "same", resume=record.folder)
    assert met == [rows]
