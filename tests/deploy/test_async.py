"""Asynchronous rounds over devices elsewhere: on the replayed clock as here, and on the real one."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from airtune.deploy.agent.device import Device, DeviceSettings
from airtune.deploy.federation.orders import Order
from airtune.deploy.federation.run import run_federation
from airtune.engine.stream import StreamServer
from airtune.errors import ConnectionFailedError, RecipeError
from airtune.planner.run import plan_recipe
from airtune.records import RunRecord, read_run
from airtune.run import run_recipe
from airtune.wire.channel import Way
from airtune.wire.post import PostTransport, Ticket
from airtune.wire.tasks import fetch_task, send_answer

ASKED = {"train.async_buffer": 1, "train.rounds": 3, "train.local_steps": 1, "data.limit": 40}
LONG_S = 60.0
"""Outer limit of what takes a moment on an idle machine."""
SLOW = 2


def test_devices_elsewhere_arrive_as_those_here(
    recipe: Callable[..., Any], nodes: Any, tmp_path: Path
) -> None:
    asked = recipe(**ASKED)
    run_recipe(asked, folder=tmp_path / "here", reports=False)
    order = Order(asked, tmp_path / "there", devices=3, clock="replay")
    folder = run_federation(order, nodes(["a", "b", "c"]), tell=lambda **event: None)
    pairs = list(zip(read_run(tmp_path / "here").rounds, read_run(folder).rounds, strict=True))
    assert len(pairs) == 3
    for here, there in pairs:
        assert there["end_s"] == pytest.approx(here["end_s"])
        assert there["buffered"] == here["buffered"]
        assert there["train_loss"] == pytest.approx(here["train_loss"], rel=1e-3)


class Streamed:
    """Devices in threads, reached over the streams that real ones use."""

    def __init__(self, server: StreamServer) -> None:
        self.names, self.gone = ("a", "b", "c"), set[int]()
        self.asked: list[tuple[int, str, int]] = []
        """Device, kind and round of every task."""
        self.holds: Callable[[int, int], None] = lambda device, round: None
        """Called with device and round of a training task, before it is answered."""
        self._server, self._way = server, Way(f"127.0.0.1:{server.port}")
        self._loading = threading.Lock()
        self._devices = [Device(DeviceSettings(data="recipe", compute="cpu")) for _ in self.names]

    def connected(self) -> Mapping[str, int]:
        return {name: at for at, name in enumerate(self.names) if at not in self.gone}

    def transport(self, locate: Callable[[], Mapping[int, int]]) -> PostTransport:
        return PostTransport(self._server.post, locate=locate, hand=self._hand)

    def _hand(self, device: int, ticket: Ticket) -> None:
        threading.Thread(target=self._work, args=(device, ticket), daemon=True).start()

    def _work(self, device: int, ticket: Ticket) -> None:
        message = fetch_task(self._way, ticket)
        said = json.loads(message.header)
        self.asked.append((device, said["kind"], said["round"]))
        with self._loading:
            reply = self._devices[device].handle(message)
        if said["kind"] == "train":
            self.holds(device, said["round"])
        if device not in self.gone:
            with suppress(ConnectionFailedError):  # the run has ended meanwhile
                send_answer(self._way, ticket, reply)

    def trained(self, device: int) -> list[int]:
        """Return the rounds in which a device was told to train."""
        return [round for who, kind, round in self.asked if (who, kind) == (device, "train")]


@pytest.fixture
def streamed() -> Iterator[Streamed]:
    server = StreamServer()
    yield Streamed(server)
    server.close()


def run_over(
    devices: Streamed,
    recipe: Any,
    root: Path,
    *,
    on_round: Callable[[dict[str, Any]], None] | None = None,
    **more: Any,
) -> RunRecord:
    def tell(**event: Any) -> None:
        if on_round is not None and "round" in event:
            on_round(event["round"])

    order = Order(recipe, root, devices=3, clock="real", **more)
    return read_run(run_federation(order, devices, tell=tell))


def rows_of(record: RunRecord, device: int) -> list[tuple[int, str]]:
    """Return rounds and states of a device's rows."""
    table = record.devices
    return [
        (round, status)
        for who, round, status in zip(table["device"], table["round"], table["status"], strict=True)
        if who == device
    ]


def test_a_device_that_is_at_work_holds_nobody_up_and_gets_no_second_task(
    streamed: Streamed, recipe: Callable[..., Any], tmp_path: Path
) -> None:
    over = threading.Event()
    streamed.holds = lambda device, round: over.wait(LONG_S) if device == SLOW else None
    record = run_over(streamed, recipe(**ASKED), tmp_path)
    over.set()
    assert [row["counts"]["ok"] >= 1 for row in record.rounds] == [True] * 3
    assert [row["buffered"]["in_flight"] >= 1 for row in record.rounds] == [True] * 3
    assert record.results is not None
    assert record.results["validation_last"]["loss"] > 0
    of_slow = [(kind, round) for device, kind, round in streamed.asked if device == SLOW]
    assert of_slow == [("join", 0), ("train", 0)]
    assert not rows_of(record, SLOW)


def test_an_update_that_comes_late_counts_in_the_round_in_which_it_comes(
    streamed: Streamed, recipe: Callable[..., Any], tmp_path: Path
) -> None:
    second_is_over, has_come = threading.Event(), threading.Event()

    def holds(device: int, round: int) -> None:
        if device == SLOW and round == 0:
            second_is_over.wait(LONG_S)
        elif device != SLOW and round >= 2:
            has_come.wait(LONG_S)

    def on_round(row: dict[str, Any]) -> None:
        if row["round"] == 1:
            second_is_over.set()
        if "c" in row["buffered"]["staleness"]:
            has_come.set()

    streamed.holds = holds
    # one that was on its way may come first, in a round of its own
    record = run_over(streamed, recipe(**ASKED | {"train.rounds": 4}), tmp_path, on_round=on_round)
    [(came, stale)] = [
        (row["round"], row["buffered"]["staleness"]["c"])
        for row in record.rounds
        if "c" in row["buffered"]["staleness"]
    ][:1]
    assert 2 <= came == stale
    assert rows_of(record, SLOW)[0] == (came, "ok")
    # the model that it judged is the one that it was given, the untuned one
    assert record.rounds[came]["validation_before"]["loss"] > 0


def test_a_device_that_dies_at_work_costs_the_others_nothing(
    streamed: Streamed, recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airtune.wire.post.GONE_S", 0.0)
    is_given_up, withdraw = threading.Event(), streamed._server.post.withdraw

    def withdrawn(token: str) -> None:
        response = streamed._server.post.response(token)
        withdraw(token)
        if response is not None and response.fault:
            is_given_up.set()

    def holds(device: int, round: int) -> None:
        if device == SLOW:
            streamed.gone.add(SLOW)
        elif round >= 1:
            is_given_up.wait(LONG_S)

    monkeypatch.setattr(streamed._server.post, "withdraw", withdrawn)
    streamed.holds = holds
    record = run_over(streamed, recipe(**ASKED | {"train.rounds": 5}), tmp_path)
    assert [status for _, status in rows_of(record, SLOW)] == ["absent"]
    assert streamed.trained(SLOW) == [0]
    assert [row["counts"]["ok"] >= 1 for row in record.rounds] == [True] * 5


def test_a_run_that_is_killed_goes_on_and_who_was_at_work_begins_anew(
    streamed: Streamed, recipe: Callable[..., Any], tmp_path: Path
) -> None:
    goes_on = threading.Event()
    streamed.holds = lambda device, round: goes_on.wait(LONG_S) if device == SLOW else None

    def killed(row: dict[str, Any]) -> None:
        if row["round"] == 1:
            raise KeyError("killed")

    asked = recipe(**ASKED | {"train.rounds": 4})
    with pytest.raises(KeyError):
        run_over(streamed, asked, tmp_path, on_round=killed)
    [folder] = tmp_path.iterdir()
    goes_on.set()
    record = run_over(streamed, asked, tmp_path, resume=folder)
    assert [row["round"] for row in record.rounds] == [0, 1, 2, 3]
    assert streamed.trained(SLOW)[:2] == [0, 2]


@pytest.mark.parametrize(("name", "why"), [("sft", "cuts the model"), ("fedspine", "deadline")])
def test_what_needs_a_round_together_is_refused_alike(
    name: str, why: str, recipe: Callable[..., Any], nodes: Any, tmp_path: Path
) -> None:
    asked = recipe(**ASKED | {"method.name": name})
    for does in (
        lambda: run_federation(Order(asked, tmp_path), nodes(["a"]), tell=lambda **event: None),
        lambda: plan_recipe(asked),
    ):
        with pytest.raises(RecipeError, match=rf"train\.async_buffer cannot be used with .*{why}"):
            does()
    assert not list(tmp_path.rglob("run.json"))
