"""The files by which a device or an operator proves itself, and knows its server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from airtune.deploy.keys import read_private_key
from airtune.errors import DeploymentError
from airtune.wire.channel import channel_credentials


@dataclass(frozen=True, slots=True)
class Proof:
    """Files by which who calls and who is called prove themselves."""

    authority: Path
    """Certificate that the server's is checked against."""
    key: Path
    certificate: Path

    def check(self) -> None:
        """Refuse files that are not there.

        Raises:
            DeploymentError: if one is missing.
        """
        for what, path in (
            ("--ca", self.authority), ("--key", self.key), ("--cert", self.certificate),
        ):  # fmt: skip
            if not path.is_file():
                raise DeploymentError(
                    f"there is no file at {what} {path}; copy the folder that airtune device add "
                    "or airtune operator add has made"
                )

    def credentials(self) -> grpc.ChannelCredentials:
        """Return them as a connection takes them.

        Raises:
            DeploymentError: if one is missing or cannot be read.
        """
        self.check()
        return channel_credentials(
            self.authority.read_bytes(), read_private_key(self.key), self.certificate.read_bytes()
        )
