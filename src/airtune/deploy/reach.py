"""Calling a server before anything else does, so that what is wrong can be said in one sentence."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from airtune.errors import ConnectionFailedError, DeploymentError

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
