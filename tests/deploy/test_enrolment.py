"""Devices enrol themselves by codes; keys, certificates and the authority are replaced in use."""

import json
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.ports import free_port

grpc = pytest.importorskip("grpc", reason="grpcio is not installed: pip install 'airtune[flower]'")

from airtune.deploy import renew  # noqa: E402
from airtune.deploy.agent.agent import Agent  # noqa: E402
from airtune.deploy.agent.attend import Attending, Ended  # noqa: E402
from airtune.deploy.agent.settings import AgentSettings  # noqa: E402
from airtune.deploy.caller import Proof, ServerClient  # noqa: E402
from airtune.deploy.codes import EnrolmentCode  # noqa: E402
from airtune.deploy.renew import await_enrolling, enrol_self, finish_renewal, follow  # noqa: E402
from airtune.deploy.server import register  # noqa: E402
from airtune.deploy.server.authority import (  # noqa: E402
    ensure_certificates,
    finish_authority,
    replace_authority,
    replace_certificate,
)
from airtune.deploy.server.enroll import enroll, make_code  # noqa: E402
from airtune.deploy.server.front import Front  # noqa: E402
from airtune.deploy.server.process import start  # noqa: E402
from airtune.deploy.server.register import Register  # noqa: E402
from airtune.deploy.server.site import ServerSettings  # noqa: E402
from airtune.errors import AirtuneError, ConnectionFailedError, DeploymentError, KeyRefusedError  # noqa: E402
from airtune.wire.channel import ENROL, SERVER, channel_credentials, open_channel  # noqa: E402

LONG_S = 60.0


@dataclass
class Site:
    """A server's door in this process, with its second port."""

    state: Path
    front: Front
    port: int
    enrol_port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def code(self, count: int = 1, valid: timedelta = timedelta(hours=1), **labels: str) -> str:
        made, _ = make_code(
            self.state, port=self.enrol_port, count=count, valid=valid, labels=labels
        )
        until(lambda: self.front._enrolment.port or valid.total_seconds() < 1)
        return str(made)

    def left(self) -> list[int]:
        return [code.left for code in Register(self.state).codes]

    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.state / "audit.jsonl").read_text().splitlines()]

    def proof(self, name: str, stem: str = "device") -> Proof:
        folder = self.state / "bundles" / name
        return Proof(folder / "ca.crt", folder / f"{stem}.key", folder / f"{stem}.crt")

    def hello(self, proof: Proof) -> dict[str, Any]:
        return ServerClient(self.address, proof, SERVER).call("Hello")


def until(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + LONG_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr("airtune.deploy.server.front._LOOK_S", 0.02)
    state = tmp_path / "state"
    enroll(state, {"a": None, "b": None})
    ensure_certificates(state / "tls", ["127.0.0.1"])
    settings = ServerSettings(state, "127.0.0.1", 0, enrol_port=free_port())
    front = Front(settings)
    yield Site(state, front, front.serve(), settings.enrol_port)
    front.close()


def device_in(folder: Path) -> Proof:
    folder.mkdir()
    return Proof(folder / "ca.crt", folder / "device.key", folder / "device.crt")


def test_a_device_enrols_itself_and_its_key_never_leaves_it(site: Site, tmp_path: Path) -> None:
    mine, code = device_in(tmp_path / "mine"), site.code(site="north")
    assert enrol_self(site.address, code, mine, name="gate-1")
    assert stat.S_IMODE(mine.key.stat().st_mode) == 0o600
    assert site.hello(mine)["name"] == "gate-1"
    known = Register(site.state).devices["gate-1"]
    assert dict(known.labels) == {"site": "north"}
    key = mine.key.read_bytes()
    assert not any(key in path.read_bytes() for path in site.state.rglob("*") if path.is_file())
    assert {"call": "enrol", "device": "gate-1"}.items() <= site.audit()[-1].items()
    assert code not in (site.state / "devices.json").read_text()
    assert not enrol_self(site.address, "used again, as by a unit that restarts", mine, name="x")


def test_a_server_that_is_started_anew_enrols_from_its_first_answer(
    site: Site, tmp_path: Path
) -> None:
    code = site.code()
    site.front.close()
    again = Front(ServerSettings(site.state, "127.0.0.1", 0, enrol_port=site.enrol_port))
    port = again.serve()
    assert enrol_self(f"127.0.0.1:{port}", code, device_in(tmp_path / "mine"), name="gate-1")
    again.close()


def test_a_code_enrols_as_many_as_it_says_and_the_port_closes_behind_them(
    site: Site, tmp_path: Path
) -> None:
    code, other = site.code(count=2), site.code()
    for name in ("one", "two"):
        enrol_self(site.address, code, device_in(tmp_path / name), name=name)
    with pytest.raises(KeyRefusedError, match="has been used up"):
        enrol_self(site.address, code, device_in(tmp_path / "three"), name="three")
    enrol_self(site.address, other, device_in(tmp_path / "four"), name="four")
    until(lambda: not site.front._enrolment.port)
    with pytest.raises(DeploymentError, match="only while a code is valid"):
        enrol_self(site.address, code, device_in(tmp_path / "five"), name="five")
    assert "three" not in Register(site.state).devices


def test_a_code_ends_with_its_time_or_when_it_is_cancelled(site: Site, tmp_path: Path) -> None:
    site.code()  # keeps the port open
    late = site.code(valid=timedelta(microseconds=1))
    with pytest.raises(KeyRefusedError, match="expired"):
        enrol_self(site.address, late, device_in(tmp_path / "late"), name="late")
    ended = site.code()
    Register(site.state).cancel_code(Register(site.state).codes[-1].name)
    with pytest.raises(KeyRefusedError, match="used up"):
        enrol_self(site.address, ended, device_in(tmp_path / "ended"), name="ended")


def test_a_server_that_is_down_is_tried_again_until_it_enrols(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody, said = free_port(), list[str]()
    code, mine = site.code(), device_in(tmp_path / "mine")
    away = str(replace(EnrolmentCode.read(code), port=nobody))
    with pytest.raises(ConnectionFailedError, match="no server answers"):
        enrol_self(f"127.0.0.1:{nobody}", away, mine, name="gate-1")
    answers = iter([ConnectionFailedError("no server answers"), True])

    def enrol(*words: Any, **more: Any) -> bool:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("airtune.deploy.agent.agent.enrol_self", enrol)
    monkeypatch.setattr("airtune.deploy.agent.agent._ENROL_PAUSE_S", 0.0)
    Agent(AgentSettings(site.address, "recipe", mine, code=code), say=said.append)._enrol()
    assert said[0] == "no server answers; trying again"
    assert "enrolled as" in said[1]


def test_a_code_for_a_port_that_another_program_has_is_no_use_and_said_once(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", site.enrol_port)):
        made, _ = make_code(
            site.state, port=site.enrol_port, count=1, valid=timedelta(hours=1), labels={}
        )
        until(lambda: "another program has it" in caplog.text)
        with pytest.raises(DeploymentError, match="enrolment is closed at"):
            await_enrolling(site.address, made, wait_s=0.2)
        assert caplog.text.count("another program has it") == 1
    await_enrolling(site.address, made)  # it is opened once the port is free


class Later(datetime):
    """A clock that is eleven years fast."""

    @classmethod
    def now(cls, zone: Any = None) -> datetime:
        return datetime.now(zone) + timedelta(days=4000)


def test_a_certificate_that_does_not_hold_at_this_machines_time_is_named(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Agent(AgentSettings(site.address, "recipe", site.proof("a")), say=lambda said: None)
    dropped = Ended(False, "recvmsg: Connection reset by peer", grpc.StatusCode.UNAVAILABLE)
    agent._judge(dropped, 0.0, is_new=True)
    monkeypatch.setattr("airtune.deploy.keys.datetime", Later)
    with pytest.raises(DeploymentError, match=r"device\.crt holds from .*: set the clock"):
        agent._judge(dropped, 0.0, is_new=True)
    ports = iter((free_port(), free_port()))
    later = ServerSettings(site.state, "127.0.0.1", next(ports), enrol_port=next(ports))
    with pytest.raises(
        DeploymentError, match=r"ca\.crt holds from .* clock says 20.*set the clock"
    ):
        start(later, say=print)


def test_a_revoked_device_is_told_that_its_code_was_not_used(site: Site) -> None:
    settings = AgentSettings(site.address, "recipe", site.proof("a"), code="x", refused_s=0.0)
    refused = Ended(False, "its key was revoked", grpc.StatusCode.UNAUTHENTICATED)
    with pytest.raises(
        KeyRefusedError, match=r"was revoked\); the code was not used, as .*remove it"
    ):
        Agent(settings, say=lambda said: None)._judge(refused, 0.0, is_new=True)


def test_an_answer_that_was_lost_is_given_again_and_counts_once(site: Site, tmp_path: Path) -> None:
    mine, code = device_in(tmp_path / "mine"), site.code(count=2)
    enrol_self(site.address, code, mine, name="gate-1")
    mine.certificate.unlink()
    assert enrol_self(site.address, code, mine, name="gate-1")
    assert site.left() == [1]
    assert site.hello(mine)["name"] == "gate-1"


def test_a_name_or_key_that_is_anothers_is_refused(site: Site, tmp_path: Path) -> None:
    code = site.code(count=3)
    for name in ("a", "../a"):
        with pytest.raises(KeyRefusedError, match=r"is there already|a device's name"):
            enrol_self(site.address, code, device_in(tmp_path / f"x{len(name)}"), name=name)
    mine = site.proof("b")
    mine.certificate.unlink()
    with pytest.raises(KeyRefusedError, match="that of device 'b'"):
        enrol_self(site.address, code, mine, name="c")
    assert site.left() == [3]


def test_a_code_of_another_server_tells_this_one_nothing(site: Site, tmp_path: Path) -> None:
    site.code()
    said = EnrolmentCode.read(site.code())
    forged = str(replace(said, pin=bytes(16)))
    with pytest.raises(DeploymentError, match="is not the one that has made this code"):
        enrol_self(site.address, forged, device_in(tmp_path / "x"), name="x")
    assert not (tmp_path / "x" / "device.key").exists()
    assert site.left() == [1, 1]


def test_the_second_port_serves_one_small_call_and_no_guess(site: Site) -> None:
    site.code()
    leaf = ssl.get_server_certificate(("127.0.0.1", site.enrol_port)).encode()
    guess = str(EnrolmentCode(site.enrol_port, bytes(16), bytes(16)))
    codes = grpc.StatusCode
    with open_channel(f"127.0.0.1:{site.enrol_port}", channel_credentials(leaf)) as channel:
        for path, content, refused in (
            (f"{SERVER}/Attend", b"{}", codes.UNIMPLEMENTED),
            (f"{ENROL}/Sign", bytes(100_000), codes.RESOURCE_EXHAUSTED),
            (f"{ENROL}/Sign", b"[" * 9000, codes.PERMISSION_DENIED),
            (
                f"{ENROL}/Sign",
                json.dumps({"name": "x", "code": guess, "request": "x"}).encode(),
                codes.PERMISSION_DENIED,
            ),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/{path}")(content, timeout=LONG_S)
            assert caught.value.code() is refused, (path, content[:20])


@pytest.mark.parametrize("text", ["", "abc", "é", "=" * 55, "a" * 54, "a" * 56])
def test_what_is_no_code_is_refused(text: str) -> None:
    with pytest.raises(DeploymentError, match="no enrolment code"):
        EnrolmentCode.read(text)


@pytest.mark.parametrize(("count", "hours"), [(0, 1), (-1, 1), (1, 0), (1, 24 * 31), (10**6, 1)])
def test_codes_without_bounds_are_refused(site: Site, count: int, hours: int) -> None:
    with pytest.raises(DeploymentError, match=r"a code (enrols|is valid)"):
        site.code(count, timedelta(hours=hours))


def copy_of(proof: Proof, folder: Path) -> Proof:
    copied = device_in(folder)
    for old, new in zip(
        (proof.authority, proof.key, proof.certificate),
        (copied.authority, copied.key, copied.certificate),
        strict=True,
    ):
        new.write_bytes(old.read_bytes())
    return copied


def test_a_new_key_takes_over_when_it_is_used_and_the_old_one_ends_an_hour_later(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = site.proof("a")
    old = copy_of(mine, tmp_path / "old")
    renew.renew(ServerClient(site.address, mine, SERVER))
    assert mine.key.read_bytes() != old.key.read_bytes()
    assert {path.name for path in mine.key.parent.iterdir()} == {
        "ca.crt",
        "device.crt",
        "device.key",
        "device.pub",
    }
    assert site.hello(mine)["name"] == site.hello(old)["name"] == "a"
    assert [row["call"] for row in site.audit()[-2:]] == ["new key", "renew"]
    later = register._in(timedelta(hours=1, seconds=1))
    monkeypatch.setattr(register, "_now", lambda: later)
    assert site.hello(mine)["name"] == "a"
    with pytest.raises(KeyRefusedError, match="does not know this key"):
        site.hello(old)


@pytest.mark.parametrize("reached", ["asked", "answered", "key moved"])
def test_a_renewal_that_is_cut_off_leaves_a_key_that_works_and_goes_on_later(
    site: Site, reached: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, link = site.proof("a"), ServerClient(site.address, site.proof("a"), SERVER)

    def stop(*words: Any) -> None:
        if reached == "key moved":
            renew._fresh(mine).key.replace(mine.key)
        raise KeyboardInterrupt

    step = {"asked": "keep"}.get(reached, "finish_renewal")
    calls = iter([finish_renewal, stop])  # a renewal begins with what an earlier one has left
    name = "keep" if step == "keep" else "finish_renewal"
    with monkeypatch.context() as patch:
        patch.setattr(renew, name, stop if step == "keep" else lambda proof: next(calls)(proof))
        with pytest.raises(KeyboardInterrupt):
            renew.renew(link)
    finish_renewal(mine)
    assert site.hello(mine)["name"] == "a"
    renew.renew(link)
    assert site.hello(mine)["name"] == "a"
    assert not list(mine.key.parent.glob("*.new.*"))


def test_a_key_that_is_not_ones_own_is_not_taken(site: Site) -> None:
    [b] = [one for one in Register(site.state).valid() if one.name == "b"]
    with pytest.raises(DeploymentError, match="that of device 'b'"):
        Register(site.state).offer("a", b.public)
    with pytest.raises(DeploymentError, match="no signing request"):
        ServerClient(site.address, site.proof("a"), SERVER).call("Renew", request="x")


class Device:
    """A device that stays connected and does what the server says of keys."""

    def __init__(self, site: Site, name: str) -> None:
        self.proof, self.did, self.ended = site.proof(name), list[str](), list[Ended]()
        link = ServerClient(site.address, self.proof, SERVER)

        def hear(said: Any) -> None:
            try:
                self.did.append(follow(link, said))
            except AirtuneError as error:
                self.did.append(str(error))

        class Nothing:
            def take(self, *words: Any) -> None:
                raise AssertionError

        self.line = Attending(site.address, self.proof, name=name, place=Nothing(), hear=hear)
        connected = threading.Event()
        self.thread = threading.Thread(
            target=lambda: self.ended.append(self.line.attend(on_welcome=connected.set))
        )
        self.thread.start()
        assert connected.wait(LONG_S)

    def leave(self) -> None:
        self.line.leave()
        self.thread.join(LONG_S)


def test_a_device_that_is_asked_makes_itself_a_new_key_and_stays_connected(site: Site) -> None:
    device = Device(site, "a")
    before = device.proof.key.read_bytes()
    Register(site.state).ask_renewal("a")
    until(lambda: device.did)
    assert device.did == ["this device has a new key"]
    assert device.proof.key.read_bytes() != before
    assert not device.ended
    assert not Register(site.state).devices["a"].is_to_renew
    replace_authority(site.front._settings.tls)  # the certificate that comes is of the new key
    until(lambda: len(device.did) == 2)
    assert device.did[1] == "this device has a new certificate and ca.crt"
    device.leave()


def test_the_servers_certificate_is_replaced_in_use(site: Site) -> None:
    device = Device(site, "a")
    before = ssl.get_server_certificate(("127.0.0.1", site.port))
    replace_certificate(site.front._settings.tls)
    until(lambda: ssl.get_server_certificate(("127.0.0.1", site.port)) != before)
    assert site.hello(site.proof("b"))["name"] == "b"
    assert not device.ended
    assert not replace_certificate(site.front._settings.tls, if_ends_soon=True)
    device.leave()


def test_an_authority_is_replaced_in_use_and_who_has_not_followed_is_named(
    site: Site, tmp_path: Path
) -> None:
    files, device = site.front._settings.tls, Device(site, "a")
    before = copy_of(device.proof, tmp_path / "before")
    replace_authority(files)
    with pytest.raises(DeploymentError, match="being replaced already"):
        replace_authority(files)
    until(lambda: device.did)
    assert device.did == ["this device has a new certificate and ca.crt"]
    assert site.front._gate.behind() == ["b"]
    late = Device(site, "b")  # was away meanwhile
    until(lambda: site.front._gate.behind() == [])
    assert site.hello(before)["name"] == "a"
    finish_authority(files)
    until(lambda: len(device.did) == len(late.did) == 2)
    assert device.proof.authority.read_bytes() == files.authority.read_bytes()
    assert site.hello(device.proof)["name"] == "a"
    with pytest.raises(DeploymentError, match="does not prove itself"):
        site.hello(before)
    assert not device.ended
    for one in (device, late):
        one.leave()


def test_an_authority_without_its_key_is_not_made_anew(tmp_path: Path) -> None:
    files = ensure_certificates(tmp_path, ["127.0.0.1"])
    before = files.authority.read_bytes()
    files.authority_key.unlink()
    with pytest.raises(DeploymentError, match="is missing"):
        ensure_certificates(tmp_path, ["127.0.0.1"])
    assert files.authority.read_bytes() == before
