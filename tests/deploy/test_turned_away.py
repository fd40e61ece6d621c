"""What SuperLink logs of a key that it refuses becomes a sentence with the device's name."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from airtune.deploy.keys import fingerprint_of, make_device_key, read_public_key
from airtune.deploy.register import Register, Registered
from airtune.deploy.turned_away import as_sentence, refused_keys


@pytest.fixture
def public(tmp_path: Path) -> Path:
    return make_device_key(tmp_path / "device.key")


@pytest.fixture
def line(public: Path) -> str:
    """What SuperLink writes, colours and all."""
    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    pem = serialization.load_ssh_public_key(public.read_bytes()).public_bytes(*form)
    return (
        f"\x1b[91mERROR \x1b[0m: [/v1/fleet/activate-node][ApiError:2004] Attempted to register "
        f"SuperNode with public key: {pem!r}, exception: No SuperNode found with the given key."
    )


def _listed(folder: Path, public: Path) -> Register:
    text = read_public_key(public)
    register = Register(folder)
    register.add(Registered("gate-1", text, fingerprint_of(text)))
    return register


def test_a_stranger_is_named_by_its_key(tmp_path: Path, line: str, public: Path) -> None:
    said = as_sentence(line, Register(tmp_path))
    assert said is not None
    assert fingerprint_of(read_public_key(public)) in said
    assert "none of this server's" in said


def test_a_revoked_device_is_named(tmp_path: Path, line: str, public: Path) -> None:
    register = _listed(tmp_path, public)
    assert "gate-1 for now" in str(as_sentence(line, register))
    register.revoke("gate-1")
    assert "gate-1: its key" in str(as_sentence(line, register))


def test_refusals_are_counted(tmp_path: Path, line: str) -> None:
    (tmp_path / "server.log").write_text(f"INFO: up\n{line}\n{line}\n")
    [refused] = refused_keys(tmp_path)
    assert (refused.device, refused.count) == (None, 2)
    assert "none of this server's" in refused.reason
    assert refused_keys(tmp_path / "nowhere") == []


def test_refusals_before_the_last_start_are_past(tmp_path: Path, line: str) -> None:
    start = "INFO: Starting Flower SuperLink"
    (tmp_path / "server.log").write_text("\n".join([start, line, line, start, "INFO: up"]))
    assert refused_keys(tmp_path) == []
    (tmp_path / "server.log").write_text("\n".join([start, line, line, start, line]))
    assert [refused.count for refused in refused_keys(tmp_path)] == [1]


def test_a_device_that_was_let_in_since_is_refused_no_more(
    tmp_path: Path, line: str, public: Path
) -> None:
    _listed(tmp_path, public).set_node("gate-1", 42)
    log, came = tmp_path / "server.log", "INFO: [Fleet.ActivateNode] Activated node_id="
    log.write_text(f"{line}\n{came}421\n")
    assert [refused.device for refused in refused_keys(tmp_path)] == ["gate-1"]
    log.write_text(f"{line}\n{came}42\n")
    assert refused_keys(tmp_path) == []
    log.write_text(f"{line}\n{came}42\n{line}\n")
    assert [refused.count for refused in refused_keys(tmp_path)] == [1]


def test_a_damaged_key_is_no_way_to_stop_the_log(tmp_path: Path, line: str) -> None:
    assert "cannot be read" in str(as_sentence(line.replace("MH", "??"), Register(tmp_path)))
