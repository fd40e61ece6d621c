"""Keys that SuperLink turned away, read from its log and said as sentences.

Flower writes the whole public key and no name; whose it is, the register knows. The log is appended
to by every start of the server, and a device that was let in since is no longer turned away.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from airtune.deploy.keys import fingerprint_of
from airtune.deploy.register import Register

_KEY = re.compile(
    r"activate-node.*?public key: b'(-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----)"
)
_STARTED = "Starting Flower SuperLink"
_ACTIVATED = re.compile(r"\bActivated node_id=(\d+)")
_LOOK_BACK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Refusal:
    """A key that was turned away, and how often since the server's last start."""

    device: str | None
    """Whose it is; None where the register does not know the key."""
    reason: str
    """A whole sentence."""
    count: int = 1


def as_sentence(line: str, register: Register) -> str | None:
    """Return what a line of SuperLink's log says of a key that was refused, None if nothing.

    >>> as_sentence("INFO: all is well", Register(Path("nowhere"))) is None
    True
    """
    refused = _refusal(line, register)
    return None if refused is None else refused.reason


def refused_keys(state: Path) -> list[Refusal]:
    """Return the keys that were refused since the server's last start and are not let in since.

    Of a long log only the end is read, so that a count may be too low.
    """
    register = Register(state)
    try:
        with (state / "server.log").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _LOOK_BACK_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    found: Counter[tuple[str | None, str]] = Counter()
    for line in lines:
        if _STARTED in line:
            found.clear()
        elif activated := _ACTIVATED.search(line):
            came = register.name_of(int(activated[1]))
            found = Counter({key: n for key, n in found.items() if came is None or key[0] != came})
        elif refused := _refusal(line, register):
            found[refused.device, refused.reason] += 1
    return [Refusal(device, reason, count) for (device, reason), count in found.items()]


def _refusal(line: str, register: Register) -> Refusal | None:
    found = _KEY.search(line)
    if found is None:
        return None
    try:
        key = serialization.load_pem_public_key(found[1].replace("\\n", "\n").encode())
        form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        fingerprint = fingerprint_of(key.public_bytes(*form).decode())
    except ValueError:
        return Refusal(None, "refused a device whose key cannot be read")
    owner = next((d for d in register.devices.values() if d.fingerprint == fingerprint), None)
    if owner is None:
        return Refusal(
            None,
            f"refused a device: its key {fingerprint} is none of this server's; airtune device add "
            "lets it in",
        )
    if owner.revoked:
        said = f"refused {owner.name}: its key {fingerprint} was revoked on {owner.revoked}"
        return Refusal(owner.name, said)
    return Refusal(
        owner.name,
        f"refused {owner.name} for now: SuperLink has not been told of its key {fingerprint}, or "
        "still holds its last connection",
    )
