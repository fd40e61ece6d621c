"""Rounds of cut devices over a network, in one process."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.conftest import run_with

from airtune.engine.stream import StreamServer
from airtune.errors import MethodError, TrainingError
from airtune.wire.message import Message

CUT = """
import numpy as np
from dataclasses import replace
from airtune.plan import RoundPlan, WorkSpec, whole_model


class Cut:
    needs = frozenset()
    may_cut = True
    work = WorkSpec(labels="travel", server="shared")

    def init(self, problem):
        return {}

    def plan(self, problem, state, observation):
        device = np.flatnonzero(observation.available)
        told = whole_model(device, rank=problem.workload.rank, local_steps=2,
                           share=np.full(len(device), 1.0 / len(device)))
        told = replace(told, cut=np.full(len(device), 2))
        return RoundPlan(observation.round, told, ("cut at 2",) * len(device)), state

    def divide(self, problem, state, plan, links, remaining_bytes):
        return plan.assignments.share

    def learn(self, problem, state, results):
        return state
"""


def test_a_split_round_goes_over_the_stream(
    recipe: Callable[..., Any], nodes: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(CUT)
    server = StreamServer("127.0.0.1:0")
    try:
        changed = recipe(
            **{"method.name": f"{tmp_path}/mine.py:Cut", "train.rounds": 1, "data.limit": 30}
        )
        record, _ = run_with(
            changed, nodes(["a", "b"]), tmp_path, serve=lambda: (server, f":{server.port}")
        )
    finally:
        server.close()
    assert list(record.devices["status"]) == ["ok", "ok"]
    assert (record.devices["cut"] > 0).all()
    assert (record.devices["upload_bytes"] > 10_000).all()
    split = record.rounds[0]["split"]
    assert (split["steps"], split["device_steps"], split["skipped_steps"]) == (2, [2, 2], 0)
    assert split["refused"] == {}
    crossed = split["activation_up_bytes"] + split["adapter_up_bytes"]
    assert crossed == record.devices["upload_bytes"].sum()


@pytest.mark.parametrize(
    ("samples", "why"),
    [(-6, "between 0 and 4"), (10**30, "between 0 and 4"), (4, "the server saw 1")],
)
def test_steps_that_the_server_did_not_see_are_refused(
    samples: int,
    why: str,
    recipe: Callable[..., Any],
    nodes: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An update counts by its part of the steps, which may be neither negative nor made up."""
    one_step = "airtune.engine.stream.device._Going.left_s"
    monkeypatch.setattr(one_step, lambda going: -1.0)
    (tmp_path / "mine.py").write_text(CUT)
    there, server = nodes(["a", "b"]), StreamServer("127.0.0.1:0")

    def claim(device: int, reply: Message) -> Message:
        header = re.sub(rb'"samples":\d+', b'"samples":%d' % samples, reply.header)
        is_liar = device == 1 and b'"kind":"train"' in reply.header
        return Message(header, reply.blobs) if is_liar else reply

    there.mail.bend = claim
    changed = recipe(
        **{"method.name": f"{tmp_path}/mine.py:Cut", "train.rounds": 1, "data.limit": 30}
    )
    try:
        record, _ = run_with(changed, there, tmp_path, serve=lambda: (server, f":{server.port}"))
    finally:
        server.close()
    assert list(record.devices["status"]) == ["ok", "refused"]
    assert why in record.devices["reason"][1]


def test_a_device_is_not_cut_where_nothing_serves_it(
    recipe: Callable[..., Any], nodes: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(CUT)
    changed = recipe(**{"method.name": f"{tmp_path}/mine.py:Cut", "data.limit": 30})
    with pytest.raises(MethodError, match="this server serves no split rounds"):
        run_with(changed, nodes(["a"]), tmp_path)


def test_why_nobody_judges_the_model_is_said(
    recipe: Callable[..., Any], nodes: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(CUT)
    asked = {"method.name": f"{tmp_path}/mine.py:Cut", "limits.device_bytes_per_month": "300kB"}
    with pytest.raises(TrainingError, match=r"own data: its bytes of this month do not hold"):
        run_with(recipe(**asked), nodes(["a", "b"]), tmp_path)


def test_a_split_round_is_closed_where_the_way_to_devices_fails(
    recipe: Callable[..., Any], nodes: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(CUT)
    fleet, server, opened = nodes(["a"]), StreamServer("127.0.0.1:0"), []
    begin = server.open

    def remembered(task: Any) -> Any:
        opened.append(begin(task))
        fleet.mail.send = broken  # the next message is the round's first task
        return opened[-1]

    def broken(messages: Any, *, deadline_s: float, more: Any = None) -> Any:
        raise KeyError("the way to devices")

    server.open = remembered  # type: ignore[method-assign]
    changed = recipe(**{"method.name": f"{tmp_path}/mine.py:Cut", "data.limit": 30})
    try:
        with pytest.raises(KeyError, match="the way"):
            run_with(changed, fleet, tmp_path, serve=lambda: (server, f":{server.port}"))
        assert opened[0].wait(timeout_s=20.0).batches == 0
    finally:
        server.close()
