"""A server, or who has taken it over, cannot make a device run code or read files of its choice."""

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airtune.data import EMBEDDED_MODEL
from airtune.deploy.agent.attend import Attending
from airtune.deploy.agent.device import Device, DeviceSettings
from airtune.deploy.caller import Proof, ServerClient
from airtune.deploy.renew import follow
from airtune.deploy.server.enroll import enroll
from airtune.engine.message import RunSetup, Task, open_reply, seal_task
from airtune.errors import CodecError, DeploymentError, ModelError
from airtune.model.base import load_base
from airtune.plan import Workload, WorkSpec
from airtune.recipe import Recipe, load_recipe
from airtune.wire.message import Message
from airtune.wire.post import Ticket
from airtune.work.jobs import TrainSettings

OWN = '{"prompt": "2+2", "completion": "4"}\n' * 12
SECRET = '{"prompt": "the key is", "completion": "hunter2"}\n' * 40

WORKLOAD = Workload(2, 16, local_steps=1, rank=2, lora_targets=("q_proj",))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that is there once code of the server's has run."""
    return tmp_path / "it ran"


def joined(recipe: dict[str, Any], device: Device) -> Any:
    """Return what a device answers when a server asks it to join a run of a recipe."""
    setup = RunSetup(json.dumps(recipe), "", "", WORKLOAD, WorkSpec(), TrainSettings(), 0, 1)
    task = Task("join", 1, 0, 0, "a", "ticket", setup)
    return open_reply(device.handle(seal_task(task)), task)[0]


def asked(tmp_path: Path, *, data: str | None = None, **changes: Any) -> Any:
    """Return the answer to a recipe with changes that no recipe of an honest server has."""
    recipe = load_recipe(None).model_dump(mode="json")
    for key, value in changes.items():
        section, _, name = key.partition("__")
        recipe[section][name] = value
    own = tmp_path / "own.jsonl"
    own.write_text(OWN)
    return joined(recipe, Device(DeviceSettings(data=data or str(own), compute="cpu")))


def test_a_recipe_that_names_a_file_of_code_runs_nothing(tmp_path: Path, mark: Path) -> None:
    (tmp_path / "mine.py").write_text(f"open({str(mark)!r}, 'w')")
    asked(tmp_path, method__name=f"{tmp_path}/mine.py:Mine")
    assert not mark.exists()


def test_a_device_reads_its_own_data_whatever_a_recipe_names(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_text(SECRET)
    reply = asked(tmp_path, data__source=str(secret), data__test=str(secret))
    assert (reply.status, reply.joined.rows + reply.joined.held_out) == ("ok", 12)


def test_a_recipes_own_data_are_no_file_outside_the_folder_it_was_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "agent").mkdir()
    monkeypatch.chdir(tmp_path / "agent")
    secret = tmp_path / "secret.jsonl"
    secret.write_text(SECRET)
    for path in (str(secret), "../secret.jsonl"):
        reply = asked(tmp_path, data="recipe", data__source=path)
        assert reply.status == "failed"
        assert "start the agent in a folder above them" in reply.reason
    shutil.move(secret, tmp_path / "agent" / "offered.jsonl")
    assert asked(tmp_path, data="recipe", data__source="offered.jsonl").status == "ok"


def test_a_server_cannot_have_pickled_weights_read(tmp_path: Path, mark: Path) -> None:
    base = pickled_base(tmp_path, mark)
    reply = asked(tmp_path, model__source=str(base), model__allow_pickle=True)
    assert reply.status == "failed"
    assert "pickled files only" in reply.reason
    assert not mark.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "exec"},
        {"kind": "join", "code": "import os"},
        {"kind": "read", "path": "/etc/passwd"},
    ],
)
def test_there_is_no_task_that_asks_for_files_or_code(
    tmp_path: Path, change: dict[str, str], recipe: Callable[..., Recipe]
) -> None:
    device = Device(DeviceSettings(data="recipe", compute="cpu"))
    setup = RunSetup(
        recipe().model_dump_json(), "", "", WORKLOAD, WorkSpec(), TrainSettings(), 0, 1
    )
    message = seal_task(Task("join", 1, 0, 0, "a", "ticket", setup))
    said = json.loads(message.header) | change
    if change["kind"] == "join":  # what is not asked for is not looked at
        assert (
            open_reply(
                device.handle(replace(message, header=json.dumps(said).encode())),
                Task("join", 1, 0, 0, "a", "ticket", setup),
            )[0].status
            == "ok"
        )
        return
    with pytest.raises(CodecError, match="malformed"):
        device.handle(Message(json.dumps(said).encode()))


def test_what_a_server_sends_beside_tickets_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Ticket] = []

    class Place:
        def take(self, ticket: Ticket, failed: Callable[[str], None]) -> None:
            taken.append(ticket)

    heard: list[Mapping[str, Any]] = []
    attending = Attending("127.0.0.1:1", None, name="a", place=Place(), hear=heard.append)
    for answer in (
        b"",
        b"import os",
        b'{"run": "rm -rf"}',
        b'{"ticket": {"path": "/etc"}}',
        b"[" * 9999,
        b'{"ticket": {"token": "t", "run": "1", "lasts_s": 1.0, "address": ""}}',
    ):
        attending._take(answer)
    assert taken == [Ticket("t", "1", 1.0)]
    assert not any(follow(ServerClient("127.0.0.1:1", None), said) for said in heard)


def test_a_certificate_of_another_key_is_not_kept(tmp_path: Path) -> None:
    for name in ("mine", "other"):
        enroll(tmp_path / name, {"a": None})
    folder = tmp_path / "mine" / "bundles" / "a"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    proof = Proof(folder / "ca.crt", folder / "device.key", folder / "device.crt")
    other = (tmp_path / "other" / "bundles" / "a" / "device.crt").read_text()
    for said in ({"certificate": other, "authority": other}, {"certificate": "x"}, {}):
        with pytest.raises(DeploymentError, match="the server has sent"):
            follow(ServerClient("127.0.0.1:1", proof), {"proof": said, "path": "/etc/passwd"})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


class Payload:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


def pickled_base(folder: Path, mark: Path) -> Path:
    """Return a base whose weights leave a mark when they are unpickled."""
    base = folder / "base"
    shutil.copytree(EMBEDDED_MODEL, base)
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(mark)))
    return base


def test_a_base_of_pickled_weights_is_refused_unread(tmp_path: Path, mark: Path) -> None:
    base = pickled_base(tmp_path, mark)
    with pytest.raises(ModelError, match="safetensors"):
        load_base(base)
    assert not mark.exists()


def test_a_base_that_brings_code_is_refused_unrun(tmp_path: Path, mark: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(EMBEDDED_MODEL, base)
    (base / "evil.py").write_text(f"open({str(mark)!r}, 'w')")
    config = json.loads((base / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
    }
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError):
        load_base(base)
    assert not mark.exists()
