"""The server's certificate as it is served: read again when it is replaced, without a restart.

gRPC asks before every handshake whether there is a new TLS configuration, and where it is given one
it frees the one before, also under a handshake that another thread begins at that moment: the
process dies of it (grpc issue 36693). So it is given one only where the files have changed, and
while a handshake of the server's own holds the one before.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import grpc

from airtune.deploy.keys import public_in, public_of
from airtune.deploy.server.authority import ServerFiles, ensure_local_operator
from airtune.errors import AirtuneError, DeploymentError

_ANSWER_S = 10.0
"""Longest wait for the server's own first bytes of a handshake."""


@dataclass(slots=True)
class ServerTls:
    """Serves new connections with the certificate of now; those that are open stay."""

    files: ServerFiles
    _stamp: tuple[int, ...] = ()
    _pair: tuple[bytes, bytes] = field(default=(b"", b""), repr=False)
    authority: bytes = b""
    """ca.crt as it is served."""
    _offered: grpc.ServerCertificateConfiguration | None = None
    """What the next handshake replaces the configuration by."""
    _holding: socket.socket | None = None
    """A handshake that was begun with the configuration before; the server ends it in time."""

    def __post_init__(self) -> None:
        """Read the files.

        Raises:
            DeploymentError: if the key is not the certificate's.
        """
        if not self._read():
            raise DeploymentError(
                f"{self.files.certificate} is not of {self.files.key}; remove both and start again"
            )
        ensure_local_operator(self.files)

    def credentials(self) -> grpc.ServerCredentials:
        """Return what the port is served with at which callers must have a certificate."""

        def changed() -> grpc.ServerCertificateConfiguration | None:
            offered, self._offered = self._offered, None
            return offered

        return grpc.dynamic_ssl_server_credentials(
            self._configuration(), changed, require_client_authentication=True
        )

    def enrol_credentials(self) -> grpc.ServerCredentials:
        """Return what a port is served with at which callers have no certificate yet."""
        return grpc.ssl_server_credentials([self._pair])

    def refresh(self, host: str, port: int) -> bool:
        """Serve the files of now where they have changed; returns whether they had.

        Args:
            host: where this machine itself reaches the port of `credentials`.
            port: that port.

        Raises:
            DeploymentError: if the port does not answer; a later call tries again.
            StorageError: if the local operator's certificate cannot be written; a later call tries.
        """
        if self.files.stamp == self._stamp:
            return False
        self.close()
        self._holding = _begin_handshake(host, port)
        if not self._read():
            return False  # the files are replaced at this moment
        self._offered = self._configuration()
        try:
            _begin_handshake(host, port).close()  # takes the new configuration
            ensure_local_operator(self.files)
        except AirtuneError:
            self._stamp = ()
            raise
        return True

    def close(self) -> None:
        """End the handshake of its own that may still wait."""
        if self._holding is not None:
            self._holding.close()
        self._holding = None

    def _read(self) -> bool:
        """Take in the files; returns False where they do not fit each other."""
        stamp = self.files.stamp
        certificate, key = self.files.certificate.read_bytes(), self.files.key.read_bytes()
        if public_in(certificate) != public_of(self.files.key):
            return False
        self._pair, self._stamp = (key, certificate), stamp
        self.authority = self.files.authority.read_bytes()
        return True

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([self._pair], self.authority)


def _begin_handshake(host: str, port: int) -> socket.socket:
    """Return a connection on which the server has answered a hello, and waits for the rest.

    Raises:
        DeploymentError: if it does not answer.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    said = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), said).do_handshake()
    why = "the connection was closed"
    try:
        with ExitStack() as stack:
            line = stack.enter_context(socket.create_connection((host, port), timeout=_ANSWER_S))
            line.sendall(said.read())
            if line.recv(1):
                stack.pop_all()
                return line
    except OSError as error:
        why = str(error)
    raise DeploymentError(
        f"the server cannot reach its own port {host}:{port} ({why}); look at the firewall and --host"
    )
