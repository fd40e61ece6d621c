"""A run whose devices lack the base model: the server hands it out, once."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from airtune.data import EMBEDDED_MODEL
from airtune.deploy.agent import fetch
from airtune.deploy.agent.device import Device, DeviceSettings
from airtune.deploy.federation import base_download as download
from airtune.deploy.federation.base_download import BaseDownload
from airtune.deploy.federation.orders import Order
from airtune.deploy.federation.run import run_federation
from airtune.engine.stream import StreamServer
from airtune.errors import MismatchError
from airtune.model.base import load_base
from airtune.model.part import group_of
from airtune.records import read_run
from airtune.wire import post
from airtune.wire.contents import contents_of
from airtune.wire.message import Message, More
from airtune.wire.stage import Offer


@pytest.fixture
def server() -> Any:
    serving = StreamServer()
    yield serving
    serving.close()


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """No device has the base by itself, though it stands on this machine."""
    monkeypatch.setattr(fetch, "is_here", lambda recipe: False)


def _run(recipe: Any, nodes: Any, server: Any, root: Path, cache: Path | None) -> list[Any]:
    told: list[dict[str, Any]] = []
    settings = DeviceSettings(data="recipe", compute="cpu", host="127.0.0.1", cache=cache)
    nodes.mail.devices = {number: Device(settings) for number in range(len(nodes.names))}
    folder = run_federation(
        Order(recipe, root, devices=len(nodes.names), serve=lambda: (server, f":{server.port}")),
        nodes,
        tell=lambda **event: told.append(event),
    )
    assert set(read_run(folder).devices["status"]) == {"ok"}
    return [event["note"] for event in told if "note" in event]


@pytest.mark.usefixtures("lacking")
def test_devices_fetch_the_base_once_and_train(
    recipe: Any, nodes: Any, server: Any, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(EMBEDDED_MODEL, base)
    changes = {
        "train.rounds": 1,
        "train.local_steps": 1,
        "data.limit": 30,
        "model.source": str(base),
        "model.stage": "server",
    }
    cache = tmp_path / "cache"
    first = _run(recipe(**changes), nodes(["a", "b"]), server, tmp_path / "1", cache)
    # both devices share a cache here, so the second finds what the first has fetched
    assert len(first) == 1
    assert "a fetched" in first[0]
    [staged] = [path for path in cache.iterdir() if path.is_dir()]
    held = load_base(staged, device="cpu")
    assert held.fingerprint == load_base(base, device="cpu").fingerprint
    assert len(list(staged.glob("*.safetensors"))) == held.shape.blocks + 1
    again = _run(recipe(**changes), nodes(["a", "b"]), server, tmp_path / "2", cache)
    assert again == []


@pytest.mark.usefixtures("lacking")
def test_a_device_that_keeps_none_says_so(
    recipe: Any, nodes: Any, server: Any, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(EMBEDDED_MODEL, base)
    changed = recipe(**{"model.source": str(base), "model.stage": "server", "data.limit": 30})
    with pytest.raises(MismatchError, match="keeps none that the server hands out"):
        _run(changed, nodes(["a"]), server, tmp_path / "1", None)


def test_the_join_is_as_long_as_somebody_fetches(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = contents_of(EMBEDDED_MODEL, group_of)
    files = tuple(content.described() for content in contents)
    offers = {number: Offer("", server.shelf.lend(contents), files) for number in range(65)}
    out = BaseDownload(server.shelf, offers)
    assert out.patience_s == 2 * 8 * offers[0].size_bytes / 1e6
    assert not out.is_fetching()
    lot = server.shelf.lot(offers[3].token)
    server.shelf.grant(lot, 10)
    assert out.is_fetching()
    monkeypatch.setattr(download, "LULL_S", 0.0)
    assert not out.is_fetching()


@pytest.mark.parametrize(("asked", "most_s"), [(0, 60.0), (2, 60.0), (1000, 0.05)])
def test_a_deadline_is_put_off_only_where_it_is_of_use(
    asked: int, most_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []

    def is_needed() -> bool:
        told.append(len(told) < asked)
        return told[-1]

    monkeypatch.setattr(post, "LOOK_S", 0.01)
    transport = post.PostTransport(
        post.Post(), locate=lambda: {0: 7}, hand=lambda node, ticket: None
    )
    found = transport.send({0: Message(b"x")}, deadline_s=0.0, more=More(most_s, is_needed))
    assert found[0].is_late
    assert len(told) == asked + 1 if asked < 1000 else 0 < len(told) < asked


def test_what_a_device_has_is_not_fetched(tmp_path: Path, recipe: Any) -> None:
    assert fetch.is_here(recipe())
    assert fetch.is_here(recipe(**{"model.source": str(tmp_path)}))
    assert not fetch.is_here(recipe(**{"model.source": "./nowhere"}))
    assert not fetch.is_here(recipe(**{"model.source": "nobody/nothing"}))
