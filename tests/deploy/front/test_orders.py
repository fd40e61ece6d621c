"""What operators may order, by their roles, and what becomes of who is revoked."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tests.deploy.front.conftest import HELLO, LONG_S, Line, Site, code_of, handed

from airtune.deploy.server.register import Register
from airtune.engine.stream import StreamServer
from airtune.errors import DeploymentError, KeyRefusedError, StorageError
from airtune.recipe import load_recipe
from airtune.wire.channel import CONTROL, SERVER
from airtune.wire.post import Ticket


def test_no_bundle_of_code_is_an_order(site: Site) -> None:
    before = site.files()
    recipe = load_recipe(None).model_dump_json()
    for order in (
        {"fab": "UEsDBA=="},
        {"recipe": recipe, "app": "import os"},
        {"recipe": "{}; import os"},
    ):
        with pytest.raises(DeploymentError, match=r"an order has|cannot be read"):
            site.link("admin").call("Submit", **order)
    assert site.files() - before <= {str(site.state / "audit.jsonl")}


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [("method", "name", "./mine.py:Mine"), ("model", "allow_pickle", True)],
)
def test_what_can_run_code_at_the_server_takes_an_administrator(
    site: Site, section: str, name: str, value: object
) -> None:
    recipe = load_recipe(None).model_dump(mode="json")
    recipe[section][name] = value
    with pytest.raises(DeploymentError, match="takes the role admin, and run has run"):
        site.link("run").call("Submit", recipe=json.dumps(recipe))


def test_a_run_to_go_on_with_is_no_path(site: Site) -> None:
    with pytest.raises(DeploymentError, match=r"named by its folder in runs/, got '\.\./x'"):
        site.link("run").call("Submit", recipe=load_recipe(None).model_dump_json(), resume="../x")


def test_a_run_to_go_on_with_that_is_not_there_is_refused_with_those_that_are(site: Site) -> None:
    folder = site.state / "runs" / "2026-gates"
    folder.mkdir(parents=True)
    (folder / "roster.json").write_text("{}")
    recipe = load_recipe(None).model_dump_json()
    for role in ("run", "admin"):
        with pytest.raises(DeploymentError, match=r"no run latest .* go on are: 2026-gates$"):
            site.link(role).call("Submit", recipe=recipe, resume="latest")


def test_what_the_servers_machine_refuses_is_said_as_it_is(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(order: Any, **words: Any) -> int:
        raise StorageError("the disk is full, run-1.json was not written")

    monkeypatch.setattr(site.front.runs, "submit", full)
    with pytest.raises(DeploymentError, match=r"refused: the disk is full, run-1\.json"):
        site.link("run").call("Submit", recipe=load_recipe(None).model_dump_json())


def test_devices_that_cannot_be_had_are_refused_with_the_labels_that_there_are(site: Site) -> None:
    Register(site.state).label("b", {"site": "north"})
    recipe = load_recipe(None).model_dump_json()
    for where, devices, why in (
        ({"site": "nort"}, 0, "0 devices have site=nort, 1 are asked for; labels are site=north"),
        ({"site": "north"}, 2, "1 devices have site=north, 2 are asked for"),
        (["site"], 0, "where has labels"),
    ):
        with pytest.raises(DeploymentError, match=why):
            site.link("run").call("Submit", recipe=recipe, where=where, devices=devices)
    with pytest.raises(DeploymentError, match="leave --where out"):
        site.link("run").call("Submit", recipe=recipe, where={"site": "north"}, resume="x")
    [row] = [one for one in site.link("view").call("List")["devices"] if one["name"] == "b"]
    assert row["labels"] == {"site": "north"}


def test_a_device_that_is_taken_out_of_a_run_has_no_task_of_it(
    site: Site, run_1: StreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, str, str]] = []
    monkeypatch.setattr(site.front.runs, "tell_failed", lambda *words: told.append(words))
    monkeypatch.setattr(site.front.runs, "evict", lambda number, name: name == "a")
    line = Line(site.way("a"), session="evicted")
    handed(site, site.front.members.present()["a"], Ticket("task", "1"))
    line.heard()
    with pytest.raises(DeploymentError, match="b is in no run 1"):
        site.link("run").call("Evict", run=1, device="b")
    site.link("run").call("Evict", run=1, device="a")
    assert told == [(1, "task", "an operator took this device out of the run")]
    line.close()


@pytest.mark.parametrize(
    ("role", "call", "may"),
    [
        ("view", "List", True),
        ("view", "Submit", False),
        ("view", "Stop", False),
        ("run", "List", True),
        ("run", "Stop", True),
        ("admin", "Stop", True),
        ("view", "Evict", False),
        ("run", "Evict", True),
    ],
)
def test_what_an_operator_may_is_its_role(site: Site, role: str, call: str, may: bool) -> None:
    if call == "List":
        assert site.link(role).call(call)["runs"] == []
        return
    with pytest.raises(DeploymentError if may else KeyRefusedError):
        site.link(role).call(call, run=99)


def test_a_device_is_no_operator_and_an_operator_no_device(site: Site) -> None:
    denied = grpc.StatusCode.PERMISSION_DENIED
    assert code_of(site.way("a"), f"{CONTROL}/List", b"{}") is denied
    assert code_of(site.way("admin", "operator"), f"{SERVER}/Attend", HELLO) is denied


def test_what_operators_asked_for_is_written_down(site: Site) -> None:
    with pytest.raises(DeploymentError, match="no run 98"):
        site.link("run").call("Stop", run=98)
    rows = [json.loads(line) for line in (site.state / "audit.jsonl").read_text().splitlines()]
    assert {"operator": "run", "role": "run", "call": "stop", "run": 98}.items() <= rows[-1].items()


def test_who_is_revoked_is_put_out_and_stays_out(site: Site) -> None:
    way = site.way("late")
    with way.open() as channel:
        hold = threading.Event()

        def hello() -> Iterator[bytes]:
            yield HELLO
            hold.wait(LONG_S)

        answers = channel.stream_stream(f"/{SERVER}/Attend")(hello(), timeout=LONG_S)
        assert json.loads(next(answers)) == {"welcome": "late"}
        assert site.front.members.present()["late"]
        Register(site.state).revoke("late")
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        hold.set()
    assert "was revoked on" in caught.value.details()
    assert code_of(way, f"{SERVER}/Attend", HELLO) is grpc.StatusCode.UNAUTHENTICATED
    said = site.link("view").call("List")
    assert "late" not in {row["name"] for row in said["devices"]}
    assert said["refused"][0]["device"] == "late"
