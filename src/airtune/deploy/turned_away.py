"""Keys that SuperLink turned away, read from its log and said as sentences.

Flower writes the whole public key and no name; whose it is, the register knows.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from airtune.deploy.keys import fingerprint_of
from airtune.deploy.register import Register

_KEY = re.compile(
    r"activate-node.*?public key: b'(-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----)"
)
_LOOK_BACK_BYTES = 1 << 20


def as_sentence(line: str, register: Register) -> str | None:
    """Return what a line of SuperLink's log says of a key that was refused, None if nothing.

    >>> as_sentence("INFO: all is well", Register(Path("nowhere"))) is None
    True
    """
    found = _KEY.search(line)
    if found is None:
        return None
    try:
        key = serialization.load_pem_public_key(found[1].replace("\\n", "\n").encode())
        form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        fingerprint = fingerprint_of(key.public_bytes(*form).decode())
    except ValueError:
        return "refused a device whose key cannot be read"
    owner = next((d for d in register.devices.values() if d.fingerprint == fingerprint), None)
    if owner is None:
        return (
            f"refused a device: its key {fingerprint} is none of this server's; airtune device add "
            "lets it in"
        )
    if owner.revoked:
        return f"refused {owner.name}: its key {fingerprint} was revoked on {owner.revoked}"
    return (
        f"refused {owner.name} for now: SuperLink has not been told of its key {fingerprint}, or "
        "still holds its last connection"
    )


def refused_keys(state: Path) -> dict[str, int]:
    """Return the sentences of a server's log about keys that were refused, and how often each."""
    register = Register(state)
    try:
        with (state / "server.log").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _LOOK_BACK_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return {}
    return dict(Counter(said for line in lines if (said := as_sentence(line, register))))
