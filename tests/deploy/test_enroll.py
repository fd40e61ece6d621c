"""Devices are put on the list once, and taken off for good."""

from pathlib import Path

import pytest

from airtune.deploy import admission
from airtune.deploy.admission import revoke_device
from airtune.deploy.enroll import enroll, read_inventory
from airtune.deploy.keys import make_device_key
from airtune.deploy.register import Register, Registered
from airtune.deploy.site import ServerSettings
from airtune.errors import ConnectionFailedError, DeploymentError


def test_a_bundle_has_what_belongs_on_the_device(tmp_path: Path) -> None:
    [(device, folder)] = enroll(tmp_path, {"gate-1": None})
    assert folder is not None
    assert {path.name for path in folder.iterdir()} == {"device.key", "device.pub", "ca.crt"}
    assert Register(tmp_path).devices["gate-1"].fingerprint == device.fingerprint


def test_a_name_is_given_once_and_its_bundle_stays(tmp_path: Path) -> None:
    [(_, folder)] = enroll(tmp_path, {"gate-1": None})
    assert folder is not None
    key = (folder / "device.key").read_bytes()
    with pytest.raises(DeploymentError, match="a device 'gate-1' already"):
        enroll(tmp_path, {"gate-1": None})
    assert (folder / "device.key").read_bytes() == key


def test_a_key_is_one_devices_alone(tmp_path: Path) -> None:
    public = make_device_key(tmp_path / "own.key")
    enroll(tmp_path / "state", {"gate-1": public})
    with pytest.raises(DeploymentError, match="that of device 'gate-1'"):
        enroll(tmp_path / "state", {"gate-2": public})


def test_a_revoked_device_is_not_valid_and_may_come_back_with_a_new_key(tmp_path: Path) -> None:
    [(before, _)] = enroll(tmp_path, {"gate-1": None})
    revoke_device(tmp_path, "gate-1")
    assert Register(tmp_path).valid() == []
    with pytest.raises(DeploymentError, match="no valid device"):
        revoke_device(tmp_path, "gate-1")
    [(after, _)] = enroll(tmp_path, {"gate-1": None})
    assert after.fingerprint != before.fingerprint


@pytest.mark.parametrize("fault", [DeploymentError("refused"), ConnectionFailedError("silent")])
def test_a_device_that_the_server_was_not_told_of_can_be_added_again(
    fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise fault

    with monkeypatch.context() as patched:
        patched.setattr(admission, "running", lambda state: ServerSettings(state))
        patched.setattr(admission, "_tell", refuse)
        with pytest.raises(type(fault)):
            enroll(tmp_path, {"gate-1": None})
    assert Register(tmp_path).devices == {}
    assert not (tmp_path / "bundles" / "gate-1").exists()
    [(device, _)] = enroll(tmp_path, {"gate-1": None})
    assert Register(tmp_path).valid() == [device]


@pytest.mark.parametrize("name", ["", "a b", "../x", "-a", "x" * 64])
def test_names_that_could_be_paths_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="a device's name"):
        enroll(tmp_path, {name: None})


def test_only_valid_devices_have_a_name_for_their_node(tmp_path: Path) -> None:
    register = Register(tmp_path)
    register.add(Registered("gate-1", "key", "print"))
    register.set_node("gate-1", 2**63)
    assert Register(tmp_path).name_of(2**63) == "gate-1"
    register.revoke("gate-1")
    assert Register(tmp_path).name_of(2**63) is None


def test_a_damaged_register_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "devices.json").write_text('{"devices": [{"nam')
    with pytest.raises(DeploymentError, match="damaged"):
        Register(tmp_path)


def test_inventories_in_both_formats(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("- gate-1\n- {name: gate-2, public_key: two.pub}\n")
    (tmp_path / "a.csv").write_text("name,public_key\ngate-1,\ngate-2,two.pub\n")
    wanted = {"gate-1": None, "gate-2": tmp_path / "two.pub"}
    assert read_inventory(tmp_path / "a.yaml") == wanted
    assert read_inventory(tmp_path / "a.csv") == wanted


@pytest.mark.parametrize("text", ["[]", "- a\n- a", "- {nam: a}", "a: ["])
def test_faulty_inventories_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(DeploymentError, match="inventory"):
        read_inventory(tmp_path / "a.yaml")
