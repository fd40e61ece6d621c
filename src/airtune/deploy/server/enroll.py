"""Putting devices and operators on the server's list, one, an inventory, or by a code.

A server that runs looks at the list by itself; it need not be told.
"""

from __future__ import annotations

import csv
import secrets
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml

from airtune.deploy.codes import EnrolmentCode, pin_of
from airtune.deploy.keys import fingerprint_of, make_device_key, read_public_key
from airtune.deploy.labels import Labels
from airtune.deploy.server.authority import ServerFiles, ensure_authority, issue_certificate
from airtune.deploy.server.register import Code, Register, Registered, Role, check_name
from airtune.errors import DeploymentError
from airtune.records import storage

_LONGEST = timedelta(days=30)
_MOST = 10_000


def enroll(
    state: Path,
    wanted: Mapping[str, Path | None],
    *,
    role: Role = "device",
    labels: Labels | None = None,
) -> list[tuple[Registered, Path]]:
    """Add devices, or operators.

    Args:
        state: the server's folder.
        wanted: names, each with a public key that its owner has made; None = make one.
        role: what they may do.
        labels: of each.

    Returns:
        Each with the folder to copy to it: certificates, and the key where it was made here.

    Raises:
        DeploymentError: if a name or key is taken or malformed; those before it are added.
    """
    for name in wanted:
        check_name(name)
    return [_enroll(state, name, public, role, labels or {}) for name, public in wanted.items()]


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


def _enroll(
    state: Path, name: str, public: Path | None, role: Role, labels: Labels
) -> tuple[Registered, Path]:
    register = Register(state)
    register.check_free(name)  # before its folder is touched: it may hold an uncopied key
    stem = "device" if role == "device" else "operator"
    folder = state / "bundles" / name
    if folder.exists():
        shutil.rmtree(folder)  # of one of this name that was revoked
    with storage(folder):
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.parent.mkdir(exist_ok=True, mode=0o700)
        folder.mkdir(mode=0o700)
    try:
        text = read_public_key(public or make_device_key(folder / f"{stem}.key"))
        one = register.add(Registered(name, text, fingerprint_of(text), role, labels=labels))
    except DeploymentError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    with storage(folder):
        (folder / f"{stem}.crt").write_bytes(issue_certificate(state / "tls", name, text))
        shutil.copy(ensure_authority(state / "tls").authority, folder / "ca.crt")
    return one, folder


def make_code(
    state: Path, *, port: int, count: int, valid: timedelta, labels: Labels
) -> tuple[EnrolmentCode, Code]:
    """Let devices enrol themselves at the server of a state folder.

    Args:
        state: the server's folder.
        port: where it enrols devices.
        count: how many devices the code enrols.
        valid: until when, from now.
        labels: of those devices.

    Raises:
        DeploymentError: if count or time make no sense, or the server was never started.
    """
    if not 1 <= count <= _MOST:
        raise DeploymentError(f"a code enrols 1 to {_MOST} devices, got {count}")
    if not timedelta(0) < valid <= _LONGEST:
        raise DeploymentError(f"a code is valid for at most {_LONGEST.days} days, got {valid}")
    certificate = ServerFiles(state / "tls").certificate
    if not certificate.is_file():
        raise DeploymentError(f"there is no certificate in {state}/tls; start the server first")
    code = EnrolmentCode(port, pin_of(certificate.read_bytes()), secrets.token_bytes(16))
    until = (datetime.now(UTC) + valid).isoformat(timespec="seconds")
    row = Code(secrets.token_hex(4), code.hash, until, count, labels)
    Register(state).add_code(row)
    return code, row
