"""Nobody in without a key, and nothing taken from who has none."""

import socket
import ssl
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import grpc
from tests.deploy.front.conftest import HANDSHAKE_S, LONG_S, Site, called, code_of

from airtune.deploy.keys import make_device_key, read_private_key, read_public_key
from airtune.deploy.server.authority import issue_certificate
from airtune.wire.channel import CONTROL, SERVER, SERVICE, Way, channel_credentials


def stranger(site: Site, tmp_path: Path) -> dict[str, Way]:
    """Ways of who has the public ca.crt: without a certificate, and with one of its own authority."""
    authority = (site.state / "tls" / "ca.crt").read_bytes()
    public = read_public_key(make_device_key(tmp_path / "own.key"))
    own = issue_certificate(tmp_path / "own", "a", public)
    forged = channel_credentials(authority, read_private_key(tmp_path / "own.key"), own)
    return {
        "bare": Way(site.target, channel_credentials(authority)),
        "forged": Way(site.target, forged),
        "clear": Way(site.target),
    }


CALLS = (
    f"{CONTROL}/Submit",
    f"{CONTROL}/List",
    f"{CONTROL}/Stop",
    f"{CONTROL}/Follow",
    f"{SERVER}/Attend",
    f"{SERVICE}/Measure",
    f"{SERVICE}/Fetch",
    "flwr.proto.Control/StartRun",
    "flwr.proto.Fleet/UnregisterNode",
)


def test_a_stranger_gets_nowhere_and_leaves_nothing(site: Site, tmp_path: Path) -> None:
    before = site.files()
    for way in stranger(site, tmp_path).values():
        for path in CALLS:
            assert code_of(way, path, b"an app") is grpc.StatusCode.UNAVAILABLE, path
    assert site.files() == before


def test_of_a_strangers_400_mb_next_to_nothing_is_taken(site: Site) -> None:
    context = ssl.create_default_context(cafile=str(site.state / "tls" / "ca.crt"))
    context.set_alpn_protocols(["h2"])
    plain = socket.create_connection(("127.0.0.1", site.port), timeout=LONG_S)
    sent = 0
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as line, suppress(OSError):
        while sent < 400 << 20:
            line.sendall(bytes(1 << 16))
            sent += 1 << 16
    assert sent < 32 << 20  # what fits the kernel's buffers until the door has shut


def test_a_message_above_the_limit_is_refused_by_its_length(site: Site) -> None:
    code = code_of(site.way("a"), f"{SERVER}/Attend", bytes(3 << 20))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_half_open_connections_are_ended_and_hold_nobody_up(site: Site) -> None:
    began = time.monotonic()
    silent = [socket.create_connection(("127.0.0.1", site.port)) for _ in range(100)]
    for line in silent:
        line.settimeout(LONG_S)
        line.sendall(b"\x16\x03\x01")  # a TLS handshake that never goes on
    assert called(site.way("a"), f"{SERVICE}/Measure", b"?")
    assert [line.recv(1) for line in silent] == [b""] * 100
    assert time.monotonic() - began >= HANDSHAKE_S / 2
    for line in silent:
        line.close()


def test_a_flood_of_connections_does_not_end_the_server_nor_with_new_certificates(
    tmp_path: Path,
) -> None:
    script = Path(__file__).with_name("flooded.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "2", "0.6"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
