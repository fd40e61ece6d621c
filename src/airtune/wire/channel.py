"""What both ends of a connection agree on: names, limits, TLS.

A server's certificate is checked against its authority's, and so is a device's or an operator's:
who has no certificate of the authority does not get through the TLS handshake, and nothing that it
sends is read. A handshake that is not finished in time is ended, a message above the limit is
refused by its length, and connections and calls are counted.
"""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from airtune.wire.message import PART_BYTES

SERVICE, SERVER, CONTROL = "airtune.Split", "airtune.Server", "airtune.Control"
"""What a run serves its devices · what a server serves all of them · what it serves operators."""
ENROL = "airtune.Enrol"
"""What a server serves devices that have no certificate yet."""
TOKEN_KEY, RUN_KEY, DEVICE_KEY = "airtune-token", "airtune-run", "airtune-device"
"""Metadata of a call: what lets it in · the run it is for · who calls, as the front has found out."""
HANDSHAKE_S = 10.0
MAX_CONNECTIONS = 2048
MAX_CALLS = 4096
_SLACK_BYTES = 4096
Metadata = tuple[tuple[str, str], ...]


def channel_options(
    *, keepalive_s: float = 10.0, message_bytes: int = PART_BYTES
) -> list[tuple[str, int]]:
    """Return what both ends set: receive limit, keepalive, no port shared by accident."""
    milliseconds = int(1000 * keepalive_s)
    return [
        ("grpc.max_receive_message_length", message_bytes + _SLACK_BYTES),
        ("grpc.max_send_message_length", PART_BYTES + _SLACK_BYTES),
        ("grpc.max_metadata_size", 16 << 10),
        ("grpc.keepalive_time_ms", milliseconds),
        ("grpc.keepalive_timeout_ms", milliseconds),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", milliseconds // 2),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", milliseconds // 2),
        # Windows stay at about a part. Where they grow by what a link has carried, a slow link with
        # deep buffers takes minutes of data at once, and pings behind these come too late.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.so_reuseport", 0),
    ]


def server_options(
    *,
    handshake_s: float = HANDSHAKE_S,
    connections: int = MAX_CONNECTIONS,
    message_bytes: int = PART_BYTES,
    age_s: float | None = None,
) -> list[tuple[str, int]]:
    """Return what a server that faces the network sets.

    Args:
        handshake_s: how long a caller may take to prove itself.
        connections: how many are held at most.
        message_bytes: the most that one message may have.
        age_s: after which every connection is ended; None = never.
    """
    ages = (
        ()
        if age_s is None
        else (
            ("grpc.max_connection_age_ms", int(1000 * age_s)),
            ("grpc.max_connection_age_grace_ms", 1000),
        )
    )
    return [
        *channel_options(message_bytes=message_bytes),
        *ages,
        ("grpc.server_handshake_timeout_ms", int(1000 * handshake_s)),
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.max_concurrent_streams", 64),
    ]


class ReusedChannels:
    """A connection that is used again: to prove oneself anew takes several round trips a call."""

    def __init__(self) -> None:
        """Hold none yet."""
        self._channels: queue.SimpleQueue[grpc.Channel] = queue.SimpleQueue()

    @contextmanager
    def channel(self, made: Callable[[], grpc.Channel]) -> Iterator[grpc.Channel]:
        """Yield the channel that waits, or one that is made; it is closed where a call on it fails."""
        try:
            channel = self._channels.get_nowait()
        except queue.Empty:
            channel = made()
        try:
            yield channel
        except BaseException:
            channel.close()
            raise
        self._channels.put(channel)

    def close(self) -> None:
        """Close what waits."""
        while not self._channels.empty():
            self._channels.get().close()


@dataclass(frozen=True, slots=True)
class Way:
    """How a device reaches what serves it."""

    target: str
    """HOST:PORT."""
    credentials: grpc.ChannelCredentials | None = None
    """None = in the clear."""
    metadata: Metadata = ()
    """Goes with every call."""
    kept: ReusedChannels | None = None
    """Where its connection waits between calls; None = it is closed after each."""

    def open(self) -> AbstractContextManager[grpc.Channel]:
        """Return a channel for the calls made within it."""

        def made() -> grpc.Channel:
            return open_channel(self.target, self.credentials)

        return made() if self.kept is None else self.kept.channel(made)


def open_channel(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    """Return a channel to HOST:PORT; None = in the clear."""
    if credentials is None:
        return grpc.insecure_channel(target, options=channel_options())
    return grpc.secure_channel(target, credentials, options=channel_options())


def server_credentials(
    certificate: bytes, key: bytes, *, authority: bytes | None = None
) -> grpc.ServerCredentials:
    """Return TLS credentials of a server from PEM.

    Args:
        certificate: the server's.
        key: its private key.
        authority: certificate of who signs those of devices and operators, which callers then must
            have; None = anybody may call.
    """
    return grpc.ssl_server_credentials(
        [(key, certificate)], authority, require_client_auth=authority is not None
    )


def channel_credentials(
    authority: bytes, key: bytes | None = None, certificate: bytes | None = None
) -> grpc.ChannelCredentials:
    """Return TLS credentials of a caller: the authority that it trusts and its own proof, in PEM."""
    return grpc.ssl_channel_credentials(authority, key, certificate)


def value_of(metadata: Metadata | None, key: str) -> str:
    """Return what the metadata of a call say under a key, "" if nothing."""
    return next((str(value) for name, value in metadata or () if name == key), "")


def read_json(content: bytes) -> dict[str, Any]:
    """Return the object that the other side sends, {} where it is none."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
