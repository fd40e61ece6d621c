"""A caller's side, of an operator or a device: what proves it, and calls that take and return JSON."""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from airtune.deploy import DEFAULT_PORT
from airtune.deploy.keys import read_private_key
from airtune.errors import AirtuneError, ConnectionFailedError, DeploymentError, KeyRefusedError
from airtune.wire.channel import CONTROL, DEVICE_KEY, SERVER, Way, channel_credentials


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
            ("--ca", self.authority),
            ("--key", self.key),
            ("--cert", self.certificate),
        ):
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


_REPLY_S = 60.0
_DENIED = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})


@dataclass(frozen=True, slots=True)
class ServerClient:
    """How an operator, or a device, reaches a server."""

    address: str
    """HOST:PORT."""
    proof: Proof | None
    """None = a server without TLS and keys."""
    service: str = CONTROL
    """What is called: that of operators, or of devices."""
    name: str = ""
    """What a device calls itself at a server without keys."""

    @property
    def way(self) -> Way:
        """How calls reach it.

        Raises:
            DeploymentError: if a file of the proof is missing or cannot be read.
        """
        if self.proof is not None:
            return Way(self.address, self.proof.credentials())
        return Way(self.address, metadata=((DEVICE_KEY, self.name),) if self.name else ())

    def ask(self, call: str, **words: Any) -> Iterator[bytes]:
        """Make a call and yield what comes back.

        Raises:
            ConnectionFailedError: if the server cannot be reached.
            KeyRefusedError: if it does not let this caller do that.
            DeploymentError: if it is another server, or refuses what is asked.
        """
        way = self.way
        timeout_s = None if call == "Follow" else _REPLY_S
        with way.open() as channel:
            answers = channel.stream_stream(f"/{self.service}/{call}")(
                iter([json.dumps(words).encode()]), timeout=timeout_s, metadata=way.metadata
            )
            try:
                yield from answers
            except grpc.RpcError as error:
                raise self._fault(error) from error
            finally:
                answers.cancel()

    def call(self, call: str, **words: Any) -> dict[str, Any]:
        """Make a call that answers once; raises as `ask`."""
        return dict(json.loads(b"".join(self.ask(call, **words)) or b"{}"))

    @property
    def _who(self) -> str:
        return "device" if self.service == SERVER else "operator"

    def _fault(self, error: grpc.RpcError) -> AirtuneError:
        details = error.details() or ""
        if error.code() in _DENIED:
            return KeyRefusedError(
                f"the server at {self.address} refuses this {self._who}: {details}"
            )
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return DeploymentError(
                f"{self.address} answers, but takes no runs and no devices: name the server's port "
                f"for calls, {DEFAULT_PORT} unless it was started with --port; the next one only "
                "enrols devices"
            )
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            return DeploymentError(f"the server at {self.address} refused: {details}")
        check_server(self.address, None if self.proof is None else self.proof.authority)
        if self.proof is None:
            return ConnectionFailedError(f"the server at {self.address} ended the call: {details}")
        return KeyRefusedError(
            f"the server at {self.address} does not take the key {self.proof.key}, or ended the "
            f"call ({details}); airtune {self._who} list there says which keys are valid"
        )


_LAST_PORT = 65535


def address_of(server: str) -> str:
    """Return where a server is called, HOST:PORT, at its usual port unless another is named.

    Raises:
        DeploymentError: if it is no address.

    >>> address_of("edge.example.org"), address_of("10.0.0.5:9000"), address_of("[::1]")
    ('edge.example.org:9443', '10.0.0.5:9000', '[::1]:9443')
    """
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+)(?::(\d{1,5}))?", server)
    if found is None or int(found[2] or DEFAULT_PORT) > _LAST_PORT:
        raise DeploymentError(
            "--server must be HOST or HOST:PORT, a port up to 65535 and an IPv6 address in "
            f"brackets, got {server!r}"
        )
    return f"{found[1]}:{found[2] or DEFAULT_PORT}"


_TIMEOUT_S = 30.0


def check_server(address: str, authority: Path | None) -> None:
    """Call the server once and check its certificate.

    Args:
        address: HOST:PORT.
        authority: certificate that the server's is checked against; None = there is no TLS.

    Raises:
        ConnectionFailedError: if nobody answers; that may pass.
        DeploymentError: if the server is another than the certificate says; that will not.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        with socket.create_connection((host, int(port)), timeout=_TIMEOUT_S) as plain:
            if authority is None:
                return
            context = ssl.create_default_context(cafile=str(authority))
            with context.wrap_socket(plain, server_hostname=host):
                return
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", "") or error.reason or str(error)
        raise DeploymentError(
            f"the server at {address} does not prove itself by {authority} "
            f"({str(reason).lower()}); {_advice(str(reason))}"
        ) from error
    except (OSError, ValueError) as error:
        raise ConnectionFailedError(
            f"no server answers at {address} "
            f"({(getattr(error, 'strerror', None) or str(error)).lower()}); check address and firewall"
        ) from error


def _advice(reason: str) -> str:
    """Return what to do about a certificate that was not accepted."""
    if "not yet valid" in reason or "expired" in reason:
        return "set this machine's clock, or renew the certificate there"
    return (
        "take ca.crt from that server, and call it by a name that its certificate holds "
        "(airtune server start --name NAME)"
    )
