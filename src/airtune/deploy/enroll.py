"""Putting devices on the server's list, one or a whole inventory at once."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping
from pathlib import Path

import yaml

from airtune.deploy.admission import add_device
from airtune.deploy.keys import ensure_authority, make_device_key, read_public_key
from airtune.deploy.register import Register, Registered, check_name
from airtune.errors import ConnectionFailedError, DeploymentError
from airtune.records import storage


def enroll(state: Path, wanted: Mapping[str, Path | None]) -> list[tuple[Registered, Path | None]]:
    """Add devices.

    Args:
        state: the server's folder.
        wanted: names, each with a public key that the device has made itself; None = make one.

    Returns:
        Each device with the folder to copy to it; None where it has its key already.

    Raises:
        DeploymentError: if a name or key is taken or malformed; those before it are added.
        ConnectionFailedError: if the server runs and does not answer; the same.
    """
    for name in wanted:
        check_name(name)
    return [_enroll(state, name, public) for name, public in wanted.items()]


def read_inventory(path: Path) -> dict[str, Path | None]:
    """Return names and perhaps public keys of an inventory file.

    YAML: a list of names, or of mappings with `name` and perhaps `public_key`. CSV: columns `name`
    and perhaps `public_key`. Paths of keys start from the file's folder.

    Raises:
        DeploymentError: if it cannot be read, names nobody, or somebody twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = list(csv.DictReader(text.splitlines())) if path.suffix == ".csv" else _rows(text)
        pairs = [(str(row["name"]).strip(), row.get("public_key")) for row in rows]
    except (
        OSError,
        UnicodeDecodeError,
        yaml.YAMLError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise DeploymentError(
            f"inventory {path} cannot be read ({error}); it needs a name a device, as YAML list or "
            "CSV with a column name"
        ) from error
    names = [name for name, _ in pairs]
    if not names or len(set(names)) < len(names):
        twice = next((name for name in names if names.count(name) > 1), None)
        raise DeploymentError(
            f"inventory {path} names {twice or 'no device'}{' twice' if twice else ''}"
        )
    return {name: path.parent / str(key) if key else None for name, key in pairs}


def _rows(text: str) -> list[dict[str, str]]:
    found = yaml.safe_load(text)
    entries = found.get("devices") if isinstance(found, dict) else found
    return [entry if isinstance(entry, dict) else {"name": str(entry)} for entry in entries or []]


def _enroll(state: Path, name: str, public: Path | None) -> tuple[Registered, Path | None]:
    if public is not None:
        return add_device(state, name, read_public_key(public)), None
    Register(state).check_free(name)  # before its folder is touched: it may hold an uncopied key
    folder = state / "bundles" / name
    if folder.exists():
        shutil.rmtree(folder)  # of a device of this name that was revoked
    with storage(folder):
        folder.mkdir(parents=True, mode=0o700)
    made = make_device_key(folder / "device.key")
    try:
        device = add_device(state, name, read_public_key(made))
    except (DeploymentError, ConnectionFailedError):
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.copy(ensure_authority(state / "tls").authority, folder / "ca.crt")
    return device, folder
