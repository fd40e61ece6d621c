"""The server's list of devices: names, keys, and the node that Flower knows each by."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from airtune.errors import DeploymentError
from airtune.records import storage, write_atomically

_FILE = "devices.json"


@dataclass(frozen=True, slots=True)
class Registered:
    """A device that may connect, or might once."""

    name: str
    public: str
    fingerprint: str
    node: int | None = None
    """Flower's number; None = not told to the server yet."""
    added: str = ""
    revoked: str = ""
    """When its key was revoked; empty = it is valid."""


class Register:
    """The devices of a server, in one file of its state folder."""

    def __init__(self, folder: Path) -> None:
        """Read the file, if there is one.

        Raises:
            DeploymentError: if it is damaged.
        """
        self._path = folder / _FILE
        self._devices: dict[str, Registered] = {}
        if self._path.is_file():
            try:
                rows = json.loads(self._path.read_text(encoding="utf-8"))["devices"]
                self._devices = {row["name"]: Registered(**row) for row in rows}
            except (ValueError, KeyError, TypeError) as error:
                raise DeploymentError(
                    f"{self._path} is damaged ({error}); restore it, or remove it and add the "
                    "devices again"
                ) from error

    @property
    def devices(self) -> Mapping[str, Registered]:
        """All devices by name, those revoked too."""
        return dict(self._devices)

    def valid(self) -> list[Registered]:
        """Return the devices that may connect."""
        return [device for device in self._devices.values() if not device.revoked]

    def name_of(self, node: int) -> str | None:
        """Return the name of the valid device that Flower knows as this node."""
        return next((device.name for device in self.valid() if device.node == node), None)

    def check_free(self, name: str) -> None:
        """Refuse a name that no device may have, or that a valid one has.

        Raises:
            DeploymentError: if it may not be given.
        """
        known = self._devices.get(check_name(name))
        if known is not None and not known.revoked:
            raise DeploymentError(
                f"there is a device {name!r} already (key {known.fingerprint}); revoke it "
                "first, or choose another name"
            )

    def add(self, device: Registered) -> Registered:
        """Add a device, or one again that was revoked.

        Raises:
            DeploymentError: if the name is taken, or its key is another device's.
        """
        self.check_free(device.name)
        for other in self._devices.values():
            if other.fingerprint == device.fingerprint and other.name != device.name:
                raise DeploymentError(
                    f"the key {device.fingerprint} is that of device {other.name!r}; every device "
                    "needs its own"
                )
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        self._devices[device.name] = replace(device, added=stamp, revoked="")
        self._save()
        return self._devices[device.name]

    def put_back(self, name: str, before: Registered | None) -> None:
        """Undo an `add`: a name has what it had before, or is off the list."""
        if before is None:
            self._devices.pop(name, None)
        else:
            self._devices[name] = before
        self._save()

    def set_node(self, name: str, node: int) -> None:
        """Remember the node that Flower knows a device by."""
        self._devices[name] = replace(self._devices[name], node=node)
        self._save()

    def revoke(self, name: str) -> Registered:
        """Mark a device's key as revoked; returns it as it was.

        Raises:
            DeploymentError: if there is no such device, or it was revoked before.
        """
        known = self._devices.get(name)
        if known is None or known.revoked:
            names = ", ".join(device.name for device in self.valid()) or "none"
            raise DeploymentError(f"there is no valid device {name!r}; there are: {names}")
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        self._devices[name] = replace(known, revoked=stamp, node=None)
        self._save()
        return known

    def _save(self) -> None:
        with storage(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        rows = [asdict(device) for device in self._devices.values()]
        write_atomically(self._path, json.dumps({"schema": 1, "devices": rows}, indent=1))


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
