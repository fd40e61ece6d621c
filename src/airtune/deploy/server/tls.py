"""The server's certificate as it is served: read again when it is replaced, without a restart."""

from __future__ import annotations

from dataclasses import dataclass, field

import grpc

from airtune.deploy.keys import public_in, public_of
from airtune.deploy.server.authority import ServerFiles, ensure_local_operator
from airtune.errors import DeploymentError


@dataclass(slots=True)
class ServerTls:
    """Serves new connections with the certificate of now; those that are open stay."""

    files: ServerFiles
    _stamp: tuple[int, ...] = ()
    _pair: tuple[bytes, bytes] = field(default=(b"", b""), repr=False)
    authority: bytes = b""
    """ca.crt as it is now."""

    def refresh(self) -> bool:
        """Read the files again where they have changed; returns whether they had."""
        stamp = self.files.stamp
        if stamp == self._stamp:
            return False
        certificate, key = self.files.certificate.read_bytes(), self.files.key.read_bytes()
        if public_in(certificate) != public_of(self.files.key):
            return False  # they are replaced at this moment; those of before still do
        ensure_local_operator(self.files)
        self._pair, self._stamp = (key, certificate), stamp
        self.authority = self.files.authority.read_bytes()
        return True

    def credentials(self, *, of_callers: bool) -> grpc.ServerCredentials:
        """Return what a port is served with.

        Args:
            of_callers: whether who calls must have a certificate of the authority.
        """
        if not self._stamp and not self.refresh():
            raise DeploymentError(
                f"{self.files.certificate} is not of {self.files.key}; remove both and start again"
            )

        def now() -> grpc.ServerCertificateConfiguration:
            self.refresh()
            return grpc.ssl_server_certificate_configuration(
                [self._pair], self.authority if of_callers else None
            )

        return grpc.dynamic_ssl_server_credentials(
            now(), now, require_client_authentication=of_callers
        )
