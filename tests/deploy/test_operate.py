"""Backup and restore, metrics, checks before a start, and versions that may talk."""

import io
import json
import os
import socket
import stat
import tarfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airtune.cli.remote import find_proof
from airtune.cli.server import _print_runs
from airtune.deploy.agent.settings import AgentSettings
from airtune.deploy.caller import Proof, ServerClient, address_of
from airtune.deploy.preflight import check_agent, check_site
from airtune.deploy.server.authority import ensure_certificates
from airtune.deploy.server.backup import back_up, restore
from airtune.deploy.server.enroll import enroll
from airtune.deploy.server.metrics import metrics, metrics_server
from airtune.deploy.server.process import start, stop
from airtune.deploy.server.register import Register
from airtune.deploy.server.site import ServerSettings, holder_of, holding
from airtune.deploy.submit import follow
from airtune.errors import AirtuneError, ConnectionFailedError, DeploymentError, RunExistsError
from airtune.wire.versions import why_refused


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A server's folder with two devices, a run and what a running server leaves there."""
    folder = tmp_path / "airtune-server"
    enroll(folder, {"a": None, "b": None})
    ensure_certificates(folder / "tls", ["127.0.0.1"])
    run = folder / "runs" / "one"
    (run / "checkpoint" / "round-000001").mkdir(parents=True)
    for name in ("checkpoint/round-000001/state.json", "rounds.jsonl", "devices.csv", "bytes.json"):
        (run / name).write_text(name)
    for name in ("lock", "server.json", "front.log", "draining"):
        (folder / name).write_text("of the process")
    (folder / "runs.json").write_text("[]")
    return folder


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (
            stat.S_IMODE(path.stat().st_mode),
            path.read_bytes() if path.is_file() else b"",
        )
        for path in folder.rglob("*")
    }


def test_what_is_restored_is_what_was_backed_up_with_its_modes(state: Path, tmp_path: Path) -> None:
    target = tmp_path / "backup.tar.gz"
    assert back_up(state, target, keys=True) > 10
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    said = restore(target, tmp_path / "again")
    assert said["keys"]
    before, after = tree(state), tree(tmp_path / "again")
    gone = before.keys() - after.keys()
    assert gone == {"lock", "server.json", "front.log", "draining", "devices.lock", "tls/lock"}
    assert after.keys() - before.keys() == {"backup.json"}
    assert all(after[name] == before[name] for name in before.keys() - gone)
    assert stat.S_IMODE((tmp_path / "again").stat().st_mode) == 0o700
    back_up(tmp_path / "again", tmp_path / "third.tar.gz", keys=True)


def test_keys_are_left_out_by_choice_and_then_no_authority_is_made_anew(
    state: Path, tmp_path: Path
) -> None:
    back_up(state, tmp_path / "b.tar.gz", keys=False)
    assert not restore(tmp_path / "b.tar.gz", tmp_path / "again")["keys"]
    assert not list((tmp_path / "again").rglob("*.key"))
    with pytest.raises(DeploymentError, match=r"ca\.key is missing"):
        ensure_certificates(tmp_path / "again" / "tls", ["127.0.0.1"])


def test_nothing_is_overwritten_and_a_failed_restore_leaves_nothing(
    state: Path, tmp_path: Path
) -> None:
    target = tmp_path / "b.tar.gz"
    back_up(state, target, keys=True)
    with pytest.raises(RunExistsError):
        back_up(state, target, keys=True)
    with pytest.raises(RunExistsError):
        restore(target, state)
    whole = target.read_bytes()
    for content in (
        b"",
        b"no tar",
        whole[: len(whole) // 2],
        whole[:200] + b"x" * 50 + whole[250:],
    ):
        target.write_bytes(content)
        with pytest.raises(DeploymentError, match="backup"):
            restore(target, tmp_path / "again")
        assert not (tmp_path / "again").exists()
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(DeploymentError, match="no folder of a server"):
        back_up(tmp_path / "nothing", tmp_path / "c.tar.gz", keys=True)


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "../out"},
        {"name": "/out"},
        {"name": "x", "type": tarfile.SYMTYPE, "linkname": "/etc"},
        {"name": "x", "type": tarfile.FIFOTYPE},
        {"name": "x", "type": tarfile.LNKTYPE, "linkname": "y"},
    ],
)
def test_a_backup_that_would_write_elsewhere_is_refused(
    bad: dict[str, Any], tmp_path: Path
) -> None:
    said = json.dumps({"schema": 1}).encode()
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as tar:
        first, second = tarfile.TarInfo("backup.json"), tarfile.TarInfo()
        first.size = len(said)
        for key, value in bad.items():
            setattr(second, key, value)
        tar.addfile(first, io.BytesIO(said))
        tar.addfile(second)
    with pytest.raises(DeploymentError, match="nothing was restored"):
        restore(tmp_path / "b.tar.gz", tmp_path / "deep" / "again")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "deep" / "again").exists()


def test_a_run_that_goes_on_is_copied_so_that_it_can_be_resumed(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the copy is made, another round ends: a newer checkpoint, the old one goes, records grow."""
    run = state / "runs" / "one"
    read, rounds = Path.read_bytes, iter(range(2, 4))

    def meanwhile(path: Path) -> bytes:
        if path.name == "state.json" and (number := next(rounds, None)):
            new = run / "checkpoint" / f"round-{number:06d}"
            new.mkdir()
            (new / "state.json").write_text("new")
            for name in ("rounds.jsonl", "devices.csv"):
                with (run / name).open("a") as file:
                    file.write(f"round {number}\n")
            path.unlink()
            path.parent.rmdir()
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", meanwhile)
    back_up(state, tmp_path / "b.tar.gz", keys=True)
    monkeypatch.undo()
    restore(tmp_path / "b.tar.gz", tmp_path / "again")
    copied = tmp_path / "again" / "runs" / "one"
    [checkpoint] = (copied / "checkpoint").iterdir()
    assert (checkpoint / "state.json").read_text() == "new"
    number = int(checkpoint.name.removeprefix("round-"))
    for name in ("rounds.jsonl", "devices.csv"):
        assert f"round {number}\n" in (copied / name).read_text()


def test_metrics_are_of_all_runs_and_of_valid_devices(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def summary(folder: Path) -> dict[str, Any]:
        row = {"status": "ok", "finish_s": 2.5}
        return {
            "done": 3,
            "rounds": 4,
            "finished": False,
            "upload_bytes": 12345678901.0,
            "download_bytes": 0.0,
            "last_rounds": [],
            "devices": [row | {"name": "a"}, row | {"name": "b"}],
        }

    monkeypatch.setattr("airtune.deploy.server.metrics.summary", summary)
    (state / "runs" / 'two "x"').mkdir()
    said = metrics(state)
    assert 'airtune_upload_bytes_total{run="one"} 12345678901.0' in said.splitlines()
    assert r'airtune_rounds_done{run="two \"x\""} 3.0' in said.splitlines()
    assert said.count('device="a"') == said.count('device="b"') == 4
    assert said.count("# TYPE airtune_rounds_done gauge") == 1
    Register(state).revoke("b")
    assert 'device="b"' not in metrics(state)
    with metrics_server(state, "127.0.0.1", 0) as server:
        threading.Thread(target=server.handle_request).start()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as answer:
            assert "airtune_server_up 0.0" in answer.read().decode()
        with pytest.raises(DeploymentError, match="cannot serve metrics"):
            metrics_server(state, "127.0.0.1", server.server_port)


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch takes is not measured, which costs seconds."""
    monkeypatch.setattr("airtune.deploy.preflight.floor_bytes", lambda: 1)


def verdicts(findings: Iterator[Any]) -> dict[str, str]:
    return {one.what: one.verdict for one in findings}


def test_a_check_of_a_server_finds_what_would_go_wrong(
    state: Path, light: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = ServerSettings(state, "127.0.0.1", port, ("no.such.name.invalid",))
        found = verdicts(check_site(settings))
    assert found[f"port {port}"] == "fault"
    assert found["name no.such.name.invalid"] == "warning"
    assert found["modes"] == found["server.crt"] == found["ca.crt"] == found["memory"] == "ok"
    (state / "tls" / "ca.key").chmod(0o644)
    monkeypatch.setattr("airtune.deploy.preflight.ROOM_BYTES", 1 << 62)
    found = verdicts(check_site(settings))
    assert found["modes"] == "fault"
    assert found["disk"] == "warning"
    (state / "tls" / "server.crt").write_text("x")
    assert verdicts(check_site(settings))["server.crt"] == "fault"


def test_a_check_of_an_agent_finds_what_would_go_wrong(
    state: Path, light: None, tmp_path: Path
) -> None:
    home = state / "bundles" / "a"
    proof = Proof(home / "ca.crt", home / "device.key", home / "device.crt")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    settings = AgentSettings(f"127.0.0.1:{port}", str(tmp_path / "no data"), proof, cache=tmp_path)
    found = verdicts(check_agent(settings))
    assert found["settings and data"] == found["server"] == found["key"] == "fault"
    assert found["modes"] == found["ca.crt"] == found["device.crt"] == "ok"
    (home / "device.key").chmod(0o640)
    assert verdicts(check_agent(settings))["modes"] == "fault"


@pytest.mark.parametrize(("option", "place"), [("--port", 0), ("--enrol-port", 1)])
def test_a_server_does_not_start_at_a_port_that_is_taken(
    option: str, place: int, tmp_path: Path
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        socket.create_server(("127.0.0.1", 0)) as free,
    ):
        ports = [free.getsockname()[1]] * 2
        ports[place] = taken.getsockname()[1]
        free.close()
        settings = ServerSettings(tmp_path, "127.0.0.1", ports[0], enrol_port=ports[1])
        with pytest.raises(DeploymentError, match=f"{ports[place]} .* choose another {option}$"):
            start(settings, say=print)


class Told(ServerClient):
    """A server that tells a follower these events, and is gone after them."""

    def ask(self, call: str, **words: Any) -> Iterator[bytes]:
        yield from (json.dumps(event).encode() + b"\n" for event in self.name)
        raise ConnectionFailedError("no server answers at edge:9443")


BEGUN = {"stage": "running", "folder": "/state/runs/2026-gates"}


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ([BEGUN], r"was lost while run 7 .*--server edge:9443 --resume 2026-gates$"),
        ([], r"was lost while run 7 .*it has not begun, submit it again"),
        ([BEGUN, {"ended": "finished:stopped"}], r"--resume 2026-gates; .*logs --run 7"),
        ([{"error": {"kind": "ConnectionFailedError", "message": "1 of 2 are there"}}], "^1 of 2"),
    ],
)
def test_who_follows_a_run_is_told_how_it_goes_on(events: list[Any], why: str) -> None:
    with pytest.raises(AirtuneError, match=why):
        list(follow(Told("edge:9443", None, name=events), 7))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "edge:99999", "edge:port", "http://edge", "::1", "edge:1:2", "a b:1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(DeploymentError, match=r"HOST or HOST:PORT"):
        address_of(text)


def test_of_many_runs_the_newest_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "number": number,
            "name": "gates",
            "status": "queued",
            "operator": "ada",
            "began": "now",
            "devices": None,
            "where": {},
            "waits_for": [1],
        }
        for number in range(99, 0, -1)
    ]
    _print_runs(rows)
    said = capsys.readouterr().out
    assert said.count("gates") == 20
    assert "and 79 earlier runs" in said


def test_a_ca_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match=r"there is no file .*ca\.crt; --ca names"):
        find_proof(tmp_path / "ca.crt", None)


def test_who_holds_a_folder_is_known_from_the_first_moment_to_the_last(tmp_path: Path) -> None:
    assert holder_of(tmp_path / "nothing") is None
    with holding(tmp_path / "state"):
        assert holder_of(tmp_path / "state") == os.getpid()
        with (
            pytest.raises(DeploymentError, match=f"process {os.getpid()}"),
            holding(tmp_path / "state"),
        ):
            pass
    assert holder_of(tmp_path / "state") is None
    with pytest.raises(ConnectionFailedError, match="no server runs"):
        stop(tmp_path / "state")


@pytest.mark.parametrize(
    ("server", "device", "why"),
    [
        ("0.1.0", "0.1.9", ""),
        ("0.1.0", "0.1.0rc2", ""),
        ("1.0", "1.0.5", ""),
        ("0.2.0", "0.1.9", "too old: install a version 0.2 on gate-1"),
        ("0.2.0", "0.10.0", "too new: update the server first"),
        ("1.0.0", "0.9.9", "too old"),
        ("0.1.0", "", "install the same version"),
        ("0.1.0", "None", "install the same version"),
        ("0.1.0", "0.1x", "install the same version"),
    ],
)
def test_versions_of_one_series_may_talk(server: str, device: str, why: str) -> None:
    assert why in why_refused(server, device, name="gate-1")
    assert bool(why) == bool(why_refused(server, device, name="gate-1"))
