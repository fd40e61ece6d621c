"""The server's list of devices and operators: names, keys, labels, what each may do, and codes.

A key is replaced without a stop: the new one is remembered when its holder has shown it, and takes
the place of the old one when it is first used; the old one then holds for an hour more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from airtune.deploy.keys import fingerprint_of
from airtune.deploy.labels import Labels, matches
from airtune.errors import DeploymentError
from airtune.records import storage, write_atomically

REGISTER = "devices.json"
OVERLAP = timedelta(hours=1)
"""How long a former key still holds: what is on its way, and a line that is open."""
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
    code: str = ""
    """Of the code by which it enrolled itself."""
    is_to_renew: bool = False
    """It is asked for a new key when it calls."""
    next: str = ""
    """A new key that it has shown and not called with yet."""
    former: str = ""
    """The key that it had before, valid until `former_until`."""
    former_until: str = ""

    def has(self, public: str) -> bool:
        """Return whether a key is, or is to be, this one's; the former one for a while."""
        if public and public == self.former:
            return _now() < self.former_until
        return bool(public) and public in (self.public, self.next)


@dataclass(frozen=True, slots=True)
class Code:
    """A secret by which devices enrol themselves, of which its hash alone is kept."""

    name: str
    """By which lists and logs name it; the secret does not follow from it."""
    hash: str
    until: str
    """When it expires."""
    left: int
    """How many devices it still enrols."""
    labels: Labels = field(default_factory=dict)

    @property
    def why_not(self) -> str:
        """Why it enrols nobody, "" if it does."""
        if _now() >= self.until:
            return f"the code {self.name} expired at {self.until}"
        return "" if self.left > 0 else f"the code {self.name} has been used up"


class Register:
    """The devices and operators of a server, in one file of its state folder.

    Whoever changes it holds a lock and reads it again first: commands and the server both write it.
    """

    def __init__(self, folder: Path) -> None:
        """Read the file, if there is one.

        Raises:
            DeploymentError: if it is damaged.
        """
        self._path = folder / REGISTER
        self._devices: dict[str, Registered] = {}
        self._codes: dict[str, Code] = {}
        self._read()

    def _read(self) -> None:
        if not self._path.is_file():
            return
        try:
            said = json.loads(self._path.read_text(encoding="utf-8"))
            self._devices = {row["name"]: _row(row) for row in said["devices"]}
            self._codes = {row["hash"]: Code(**row) for row in said.get("codes", ())}
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
        owners = [one for one in self._devices.values() if one.has(public)]
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
            self._check_own(device.public, device.name)
            self._devices[device.name] = replace(device, added=_now(), revoked="")
        return self._devices[device.name]

    def _check_own(self, public: str, name: str) -> None:
        """Refuse a key that is, or was, another's."""
        for other in self._devices.values():
            if other.name != name and public in (other.public, other.next, other.former):
                raise DeploymentError(
                    f"the key {fingerprint_of(public)} is that of {_kind(other)} {other.name!r}; "
                    "each needs its own"
                )

    @property
    def codes(self) -> list[Code]:
        """All codes, also those that are used up or have expired."""
        return list(self._codes.values())

    def add_code(self, code: Code) -> None:
        """Let devices enrol themselves by a code; those that expired a month ago are forgotten."""
        a_month_ago = _in(-timedelta(days=30))
        with self._changing():
            self._codes[code.hash] = code
            self._codes = {key: one for key, one in self._codes.items() if one.until > a_month_ago}

    def cancel_code(self, name: str) -> None:
        """Let a code enrol nobody any more.

        Raises:
            DeploymentError: if there is none of this name.
        """
        with self._changing():
            found = next((code for code in self._codes.values() if code.name == name), None)
            if found is None:
                names = ", ".join(code.name for code in self._codes.values()) or "none"
                raise DeploymentError(f"there is no code {name!r}; there are: {names}")
            self._codes[found.hash] = replace(found, left=0)

    def enrol(self, secret_hash: str, name: str, public: str) -> Registered:
        """Add a device by a code. One whose answer was lost may ask again; it counts once.

        Raises:
            DeploymentError: if the code is unknown, used up or expired, or name or key are taken.
        """
        with self._changing():
            code = self._codes.get(secret_hash)
            if code is None:
                raise DeploymentError("the server does not know this code; ask for a new one")
            known = self._devices.get(name)
            if known and known.public == public and known.code == code.name and not known.revoked:
                return known
            if code.why_not:
                raise DeploymentError(f"{code.why_not}; ask for a new one")
            self.check_free(name)
            self._check_own(public, name)
            self._codes[code.hash] = replace(code, left=code.left - 1)
            self._devices[name] = Registered(
                name,
                public,
                fingerprint_of(public),
                added=_now(),
                labels=code.labels,
                code=code.name,
            )
        return self._devices[name]

    def ask_renewal(self, name: str) -> None:
        """Ask a device for a new key when it calls.

        Raises:
            DeploymentError: if there is no such device.
        """
        with self._changing():
            self._devices[name] = replace(self.known(name), is_to_renew=True)

    def offer(self, name: str, public: str) -> None:
        """Remember the new key of who has shown it; the present one holds until it is used.

        Raises:
            DeploymentError: if the key is another's, or was revoked.
        """
        with self._changing():
            self._check_own(public, name)
            known = self._devices[name]
            if public in (known.public, known.former):
                raise DeploymentError(f"the key {fingerprint_of(public)} is not new; make another")
            self._devices[name] = replace(known, next=public)

    def take_over(self, name: str) -> Registered:
        """Make the new key of a caller its key; the former one holds for `OVERLAP` more."""
        with self._changing():
            known = self._devices[name]
            if known.next:
                self._devices[name] = replace(
                    known,
                    public=known.next,
                    fingerprint=fingerprint_of(known.next),
                    next="",
                    former=known.public,
                    former_until=_in(OVERLAP),
                    is_to_renew=False,
                )
        return self._devices[name]

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
        with FileLock(lock_of(self._path.parent)):
            self._read()
            yield
            said = {
                "schema": 1,
                "devices": list(map(asdict, self._devices.values())),
                "codes": list(map(asdict, self._codes.values())),
            }
            write_atomically(self._path, json.dumps(said, indent=1))


def lock_of(state: Path) -> Path:
    """Return the lock that is held while the register is changed."""
    return (state / REGISTER).with_suffix(".lock")


def _now() -> str:
    return _in(timedelta(0))


def _in(span: timedelta) -> str:
    """Return the time after a span, as it is written; such texts sort as their times do."""
    return (datetime.now(UTC) + span).isoformat(timespec="seconds")


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
