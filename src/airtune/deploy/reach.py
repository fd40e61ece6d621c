"""Calling a server before anything else does, so that what is wrong can be said in one sentence."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

from airtune.errors import ConnectionFailedError, DeploymentError

AHEAD_S, BEHIND_S = 5.0, 300.0
"""How far off a clock may be: a key's proof holds its time, and Flower takes none beyond these."""
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


def check_clock(address: str, authority: Path | None) -> None:
    """Compare this device's clock with the server's, as far as keys need it.

    Nothing else compares clocks; but a key proves itself by signing the time, and Flower's server
    refuses a proof that is too old, or of the future.

    Args:
        address: HOST:PORT.
        authority: certificate that the server's is checked against; None = there is no TLS.

    Raises:
        ConnectionFailedError: if the clock is off; that passes once it is set.
    """
    said, before_s, after_s = _asked_time(address, authority)
    if said is None:
        return
    # the server's time is cut to whole seconds, and was read somewhere between before and after
    ahead_s, behind_s = before_s - said - 1.0, said - after_s
    if ahead_s > AHEAD_S or behind_s > BEHIND_S:
        off_s, word = (ahead_s, "ahead of") if ahead_s > 0 else (behind_s, "behind")
        raise ConnectionFailedError(
            f"this device's clock is {_span(off_s)} {word} that of the server at {address}, which "
            f"takes keys at most {AHEAD_S:.0f} s ahead and {BEHIND_S / 60:.0f} minutes behind; set "
            "the clock (timedatectl set-ntp true)"
        )


def _asked_time(address: str, authority: Path | None) -> tuple[float | None, float, float]:
    """Return the server's time as its web server says it, and this clock's before and after."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if authority is None:
        line = http.client.HTTPConnection(host, int(port), timeout=_TIMEOUT_S)
    else:
        context = ssl.create_default_context(cafile=str(authority))
        line = http.client.HTTPSConnection(host, int(port), timeout=_TIMEOUT_S, context=context)
    try:
        before_s = time.time()
        line.request("HEAD", "/")
        date = line.getresponse().getheader("Date")
        after_s = time.time()
        said = None if date is None else parsedate_to_datetime(date).timestamp()
    except (OSError, http.client.HTTPException, ValueError):
        return None, 0.0, 0.0  # whatever is wrong, the connection itself will say better
    finally:
        line.close()
    return said, before_s, after_s


def _span(seconds: float) -> str:
    """Return a time in the largest unit of which there are two.

    >>> _span(3 * 86400), _span(90)
    ('3 days', '90 seconds')
    """
    for unit, size_s in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size_s:
            return f"{seconds / size_s:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _advice(reason: str) -> str:
    """Return what to do about a certificate that was not accepted."""
    if "not yet valid" in reason or "expired" in reason:
        return "set this machine's clock, or renew the certificate there"
    return (
        "take ca.crt from that server, and call it by a name that its certificate holds "
        "(airtune server start --name NAME)"
    )
