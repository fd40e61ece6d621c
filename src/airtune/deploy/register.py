"""The server's list of devices and operators: names, keys, and what each may do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from airtune.deploy.labels import Labels, matches
from airtune.errors import DeploymentError
from airtune.records import storage, write_atomically

_FILE = "devices.json"
Role = Literal["device", "view", "run", "admin"]
"""A device, or an operator who may look, submit and stop runs, or also name a method of a file."""
OPERATORS: tuple[Role, ...] = ("view", "run", "admin")
"""Each may do what those before it may."""


@dataclass(frozen=True, slots=True)
class Registered:
    """Who may connect, or might once."""

    name: str
    public: str
    fingerprint: str
    role: Role = "device"
    added: str = ""
    revoked: str = ""
    """When its key was revoked; empty = it is valid."""
    labels: Labels = field(default_factory=dict)


class Register:
    """The devices and operators of a server, in one file of its state folder.

    Whoever changes it holds a lock and reads it again first: commands and the server both write it.
    """

    def __init__(self, folder: Path) -> None:
        """Read the file, if there is one.

        Raises:
            DeploymentError: if it is damaged.
        """
        self._path = folder / _FILE
        self._devices: dict[str, Registered] = {}
        self._read()

    def _read(self) -> None:
        if not self._path.is_file():
            return
        try:
            rows = json.loads(self._path.read_text(encoding="utf-8"))["devices"]
            self._devices = {row["name"]: _row(row) for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise DeploymentError(
                f"{self._path} is damaged ({error}); restore it, or remove it and add the "
                "devices again"
            ) from error

    @property
    def everybody(self) -> Mapping[str, Registered]:
        """All by name, those revoked too."""
        return dict(self._devices)

    @property
    def devices(self) -> Mapping[str, Registered]:
        """All devices by name, those revoked too."""
        return {name: one for name, one in self._devices.items() if one.role == "device"}

    @property
    def operators(self) -> Mapping[str, Registered]:
        """All operators by name, those revoked too."""
        return {name: one for name, one in self._devices.items() if one.role != "device"}

    def valid(self) -> list[Registered]:
        """Return who may connect."""
        return [device for device in self._devices.values() if not device.revoked]

    def matching(self, where: Labels) -> list[Registered]:
        """Return the valid devices whose labels hold all of `where`."""
        return [
            one for one in self.devices.values() if not one.revoked and matches(one.labels, where)
        ]

    def owner_of(self, public: str) -> Registered | None:
        """Return whose a key is, revoked or not; None = nobody's."""
        owners = [one for one in self._devices.values() if one.public == public]
        return owners[-1] if owners else None

    def check_free(self, name: str) -> None:
        """Refuse a name that no device may have, or that a valid one has.

        Raises:
            DeploymentError: if it may not be given.
        """
        known = self._devices.get(check_name(name))
        if known is not None and not known.revoked:
            raise DeploymentError(
                f"the {_kind(known)} {name!r} is there already (key {known.fingerprint}); revoke it "
                "first, or choose another name"
            )

    def add(self, device: Registered) -> Registered:
        """Add a device, or one again that was revoked.

        Raises:
            DeploymentError: if the name is taken, or its key is another device's.
        """
        with self._changing():
            self.check_free(device.name)
            for other in self._devices.values():
                if other.fingerprint == device.fingerprint and other.name != device.name:
                    raise DeploymentError(
                        f"the key {device.fingerprint} is that of {_kind(other)} {other.name!r}; "
                        "each needs its own"
                    )
            self._devices[device.name] = replace(device, added=_now(), revoked="")
        return self._devices[device.name]

    def revoke(self, name: str, *, operator: bool = False) -> Registered:
        """Mark a key as revoked; returns it as it was.

        Raises:
            DeploymentError: if there is no such device (or operator), or it was revoked before.
        """
        with self._changing():
            known = self.known(name, operator=operator)
            self._devices[name] = replace(known, revoked=_now())
        return known

    def label(self, name: str, labels: Labels, without: frozenset[str] = frozenset()) -> Labels:
        """Set labels of a device and take some off; returns all that it has then.

        Raises:
            DeploymentError: if there is no such device.
        """
        with self._changing():
            known = self.known(name)
            kept = {key: value for key, value in known.labels.items() if key not in without}
            self._devices[name] = replace(known, labels=kept | dict(labels))
        return self._devices[name].labels

    def known(self, name: str, *, operator: bool = False) -> Registered:
        """Return a valid device, or operator, by its name.

        Raises:
            DeploymentError: if there is none.
        """
        known = (self.operators if operator else self.devices).get(name)
        if known is None or known.revoked:
            kind = "operator" if operator else "device"
            names = ", ".join(one.name for one in self.valid() if _kind(one) == kind) or "none"
            raise DeploymentError(f"there is no valid {kind} {name!r}; there are: {names}")
        return known

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the file, read it again, and write what was changed."""
        with storage(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(self._path.with_suffix(".lock")):
            self._read()
            yield
            rows = [asdict(device) for device in self._devices.values()]
            write_atomically(self._path, json.dumps({"schema": 1, "devices": rows}, indent=1))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _row(row: dict[str, Any]) -> Registered:
    row.pop("node", None)  # of lists that were written when Flower numbered the devices
    return Registered(**row)


def _kind(one: Registered) -> str:
    return "device" if one.role == "device" else "operator"


def check_name(name: str) -> str:
    """Return a device's name if it may be one.

    Raises:
        DeploymentError: if it may not.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
        raise DeploymentError(
            f"a device's name may have letters, digits and . _ -, at most 63, got {name!r}"
        )
    return name
