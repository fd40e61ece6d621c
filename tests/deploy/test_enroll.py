"""Devices are put on the list once, and taken off for good."""

from pathlib import Path

import pytest

from airtune.deploy.keys import make_device_key, read_public_key
from airtune.deploy.server.enroll import enroll, read_inventory
from airtune.deploy.server.register import Register
from airtune.errors import DeploymentError


def test_a_bundle_has_what_belongs_on_the_device(tmp_path: Path) -> None:
    [(device, folder)] = enroll(tmp_path, {"gate-1": None})
    names = {path.name for path in folder.iterdir()}
    assert names == {"device.key", "device.pub", "device.crt", "ca.crt"}
    assert Register(tmp_path).devices["gate-1"].fingerprint == device.fingerprint


def test_a_name_is_given_once_and_its_bundle_stays(tmp_path: Path) -> None:
    [(_, folder)] = enroll(tmp_path, {"gate-1": None})
    key = (folder / "device.key").read_bytes()
    with pytest.raises(DeploymentError, match="device 'gate-1' is there already"):
        enroll(tmp_path, {"gate-1": None})
    assert (folder / "device.key").read_bytes() == key


def test_a_key_is_one_devices_alone(tmp_path: Path) -> None:
    public = make_device_key(tmp_path / "own.key")
    enroll(tmp_path / "state", {"gate-1": public})
    with pytest.raises(DeploymentError, match="that of device 'gate-1'"):
        enroll(tmp_path / "state", {"gate-2": public})


def test_a_revoked_device_is_not_valid_and_may_come_back_with_a_new_key(tmp_path: Path) -> None:
    [(before, _)] = enroll(tmp_path, {"gate-1": None})
    Register(tmp_path).revoke("gate-1")
    assert Register(tmp_path).valid() == []
    with pytest.raises(DeploymentError, match="no valid device"):
        Register(tmp_path).revoke("gate-1")
    [(after, _)] = enroll(tmp_path, {"gate-1": None})
    assert after.fingerprint != before.fingerprint


def test_a_key_that_the_device_made_gets_a_certificate_and_stays_there(tmp_path: Path) -> None:
    public = make_device_key(tmp_path / "own.key")
    [(device, folder)] = enroll(tmp_path / "state", {"gate-1": public})
    assert {path.name for path in folder.iterdir()} == {"device.crt", "ca.crt"}
    assert device.public == read_public_key(public)


def test_an_operator_is_no_device_and_the_other_way_round(tmp_path: Path) -> None:
    enroll(tmp_path, {"ada": None}, role="run")
    enroll(tmp_path, {"gate-1": None})
    register = Register(tmp_path)
    assert (set(register.operators), set(register.devices)) == ({"ada"}, {"gate-1"})
    with pytest.raises(DeploymentError, match="no valid device 'ada'; there are: gate-1"):
        register.revoke("ada")
    with pytest.raises(DeploymentError, match="the operator 'ada' is there already"):
        enroll(tmp_path, {"ada": None})


@pytest.mark.parametrize("name", ["", "a b", "../x", "-a", "x" * 64])
def test_names_that_could_be_paths_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="a device's name"):
        enroll(tmp_path, {name: None})


def test_a_key_has_one_owner_whose_revocation_stays(tmp_path: Path) -> None:
    [(device, _)] = enroll(tmp_path, {"gate-1": None})
    Register(tmp_path).revoke("gate-1")
    owner = Register(tmp_path).owner_of(device.public)
    assert owner is not None
    assert owner.revoked
    assert Register(tmp_path).owner_of("another") is None


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
