"""A cut device holds, fetches and is asked for no more than its part of the model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airtune.cost import blocks_held, cut_peaks, dense_pass_bytes
from airtune.data import EMBEDDED_MODEL
from airtune.deploy.agent import fetch
from airtune.deploy.agent.device import Device, DeviceSettings
from airtune.deploy.federation.orders import Order
from airtune.deploy.federation.run import run_federation
from airtune.engine.stream import StreamServer
from airtune.errors import MismatchError
from airtune.records import RunRecord, read_run
from airtune.run import build_pieces

SPLIT = {"method.name": "splitlora", "train.rounds": 1, "train.local_steps": 1, "data.limit": 40}


@pytest.fixture
def server() -> Iterator[StreamServer]:
    serving = StreamServer()
    yield serving
    serving.close()


@pytest.fixture
def split(recipe: Callable[..., Any], tmp_path: Path) -> Any:
    return recipe(**SPLIT)


@pytest.fixture
def small_bytes(split: Any) -> float:
    """A memory that holds the first block, and neither two nor a pass over the whole."""
    problem = build_pieces(split).problem
    least = float(cut_peaks(problem)[0])
    assert least < dense_pass_bytes(problem.shape, problem.workload)
    return 1.01 * least


def _run(
    recipe: Any, nodes: Any, server: StreamServer, root: Path, devices: dict[int, Device]
) -> tuple[RunRecord, list[dict[str, Any]]]:
    told: list[dict[str, Any]] = []
    nodes.mail.devices = devices
    order = Order(recipe, root, devices=2, serve=lambda: (server, f":{server.port}"))
    return read_run(run_federation(order, nodes, tell=lambda **event: told.append(event))), told


def _devices(small_bytes: float, *, cache: Path | None = None) -> dict[int, Device]:
    """Return one device whose memory holds the whole model, and one whose does not."""
    memory = {0: 4e9, 1: small_bytes}
    return {
        number: Device(
            DeviceSettings(
                data="recipe",
                compute="cpu",
                host="127.0.0.1",
                memory_bytes=size,
                cache=None if cache is None else cache / str(number),
            )
        )
        for number, size in memory.items()
    }


def _asked(nodes: Any, kind: str) -> set[int]:
    return {
        device
        for messages in nodes.mail.sent
        for device, message in messages.items()
        if f'"kind":"{kind}"'.encode() in message.header
    }


def test_a_small_device_trains_its_part_and_judges_nothing(
    split: Any, nodes: Any, server: StreamServer, tmp_path: Path, small_bytes: float
) -> None:
    there, devices = nodes(["big", "small"]), _devices(small_bytes)
    record, told = _run(split, there, server, tmp_path, devices)
    assert record.devices["status"].tolist() == ["ok", "ok"]
    assert devices[0]._holding._base.held is None
    assert devices[1]._holding._base.held == 1
    assert _asked(there, "evaluate") == {0}
    assert _asked(there, "train") == {0, 1}
    assert record.rounds[0]["validation"]["loss"] > 0
    [note] = [event["note"] for event in told if "note" in event]
    assert "big holds all" in note
    assert "small holds the first 1" in note


def test_where_nobody_holds_the_whole_the_run_is_judged_by_the_server_alone(
    split: Any, nodes: Any, server: StreamServer, tmp_path: Path, small_bytes: float
) -> None:
    there, devices = nodes(["a", "b"]), _devices(small_bytes)
    devices[0] = _devices(small_bytes)[1]
    record, _ = _run(split, there, server, tmp_path, devices)
    assert record.devices["status"].tolist() == ["ok", "ok"]
    assert _asked(there, "evaluate") == set()
    assert record.rounds[0]["validation"] is None
    assert record.results["test"]["loss"] > 0


def test_a_part_is_fetched_alone(
    recipe: Callable[..., Any],
    nodes: Any,
    server: StreamServer,
    tmp_path: Path,
    small_bytes: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetch, "is_here", lambda recipe: False)
    told = recipe(**SPLIT, **{"model.source": str(EMBEDDED_MODEL), "model.stage": "server"})
    devices = _devices(small_bytes, cache=tmp_path / "cache")
    record, events = _run(told, nodes(["big", "small"]), server, tmp_path / "runs", devices)
    assert record.devices["status"].tolist() == ["ok", "ok"]
    sizes = {
        number: sum(
            path.stat().st_size for path in (tmp_path / "cache" / number).rglob("*.safetensors")
        )
        for number in ("0", "1")
    }
    problem = build_pieces(told).problem
    block = problem.shape.block_parameters(problem.shape.kv_groups, problem.shape.ffn) * 4
    assert sizes["0"] - sizes["1"] == pytest.approx(block * (problem.shape.blocks - 1), rel=0.01)
    assert sum("fetched" in event.get("note", "") for event in events) >= 2


def test_other_weights_in_the_part_are_refused(
    split: Any,
    nodes: Any,
    server: StreamServer,
    tmp_path: Path,
    small_bytes: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from airtune.deploy.agent import holding

    monkeypatch.setattr(holding, "part_fingerprints", lambda network: {"front": "0" * 64})
    small = {number: _devices(small_bytes)[1] for number in (0, 1)}
    with pytest.raises(MismatchError, match="holds other weights than the server"):
        _run(split, nodes(["a", "b"]), server, tmp_path, small)


def test_a_device_refuses_what_its_memory_does_not_hold(
    recipe: Callable[..., Any], nodes: Any, server: StreamServer, tmp_path: Path
) -> None:
    """The server's word on its memory is the fleet's; the device knows better."""
    whole = recipe(**SPLIT | {"method.name": "fedavg-lora"})
    devices = _devices(1e6)
    # what it says to the server is another figure
    devices[1]._settings = DeviceSettings(
        data="recipe",
        compute="cpu",
        memory_bytes=1e6,
        probe={
            "memory_bytes": 4e9,
            "name": "b",
            "schema": 1,
            "flops_per_s": 2e10,
            "up_mbps": 20.0,
            "down_mbps": 50.0,
        },
    )
    record, _ = _run(whole, nodes(["a", "b"]), server, tmp_path, devices)
    assert record.devices["status"].tolist() == ["ok", "failed"]
    assert "out of memory: needs" in record.devices["reason"][1]


def test_who_holds_what_follows_from_memory(split: Any) -> None:
    problem = build_pieces(split).problem
    peaks, blocks = cut_peaks(problem), problem.shape.blocks
    memory = np.array([0.0, peaks[0], np.nextafter(peaks[1], 0.0), peaks[1], 1e12])
    assert blocks_held(problem, memory).tolist()[:4] == [1, 1, 1, 2]
    assert blocks_held(problem, memory)[4] == blocks
    assert blocks_held(problem, memory[:4], cut=2).tolist() == [2, 2, 2, 2]
    assert blocks_held(problem, memory[:1], cut=99).tolist() == [blocks - 1]
    several = np.linspace(peaks[0], 1e8, 200)
    dense = dense_pass_bytes(problem.shape, problem.workload)
    assert (several[blocks_held(problem, several) == blocks] >= dense).all()
