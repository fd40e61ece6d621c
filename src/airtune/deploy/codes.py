"""Codes by which devices enrol themselves: what one holds, and how it is made.

    port u16 | pin 16 bytes | secret 16 bytes, in base 32

The pin is of the server's key, so a device that knows nothing else knows the server by it. Of the
secret the server keeps a hash.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from airtune.deploy.keys import public_in
from airtune.deploy.labels import Labels
from airtune.deploy.server.authority import ServerFiles
from airtune.deploy.server.register import Code, Register
from airtune.errors import DeploymentError

_FORM = struct.Struct(">H16s16s")
_LONGEST = timedelta(days=30)
_MOST = 10_000


@dataclass(frozen=True, slots=True)
class EnrolmentCode:
    """What a code says."""

    port: int
    """Where the server enrols devices."""
    pin: bytes
    """Of the server's key."""
    secret: bytes

    @property
    def hash(self) -> str:
        """What the server keeps of the secret."""
        return hashlib.sha256(self.secret).hexdigest()

    def __str__(self) -> str:
        content = base64.b32encode(_FORM.pack(self.port, self.pin, self.secret)).decode()
        return content.rstrip("=").lower()

    @classmethod
    def read(cls, text: str) -> EnrolmentCode:
        """Read a code as it was printed.

        Raises:
            DeploymentError: if it is none.
        """
        content = text.strip().upper()
        try:
            return cls(*_FORM.unpack(base64.b32decode(content + "=" * (-len(content) % 8))))
        except (ValueError, binascii.Error, struct.error) as error:
            raise DeploymentError(
                f"{text.strip()[:8]}... is no enrolment code; airtune device code at the server "
                "prints one of 55 letters and digits"
            ) from error


def pin_of(certificate: bytes) -> bytes:
    """Return the pin of a server's certificate in PEM."""
    return hashlib.sha256(public_in(certificate).encode()).digest()[:16]


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
