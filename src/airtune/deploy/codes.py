"""Codes by which devices enrol themselves: what one holds.

    port u16 | pin 16 bytes | secret 16 bytes, in base 32

The pin is of the server's key, so a device that knows nothing else knows the server by it. Of the
secret the server keeps a hash.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass

from airtune.deploy.keys import public_in
from airtune.errors import DeploymentError

_FORM = struct.Struct(">H16s16s")


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
