"""What both ends of the stream's port agree on: names, limits, credentials."""

from __future__ import annotations

import grpc

from airtune.engine.stream.message import HEADER_BYTES, PART_BYTES

SERVICE, TOKEN_KEY = "airtune.Split", "airtune-token"


def channel_options(*, keepalive_s: float = 10.0) -> list[tuple[str, int]]:
    """Return what both ends set: receive limit, keepalive, no port shared by accident."""
    milliseconds = int(1000 * keepalive_s)
    return [
        ("grpc.max_receive_message_length", PART_BYTES + HEADER_BYTES),
        ("grpc.max_send_message_length", PART_BYTES + HEADER_BYTES),
        ("grpc.keepalive_time_ms", milliseconds),
        ("grpc.keepalive_timeout_ms", milliseconds),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", milliseconds // 2),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", milliseconds // 2),
        ("grpc.enable_http_proxy", 0),
        ("grpc.so_reuseport", 0),
    ]


def open_channel(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    """Return a channel to HOST:PORT; None = in the clear."""
    if credentials is None:
        return grpc.insecure_channel(target, options=channel_options())
    return grpc.secure_channel(target, credentials, options=channel_options())


def server_credentials(certificate: bytes, key: bytes) -> grpc.ServerCredentials:
    """Return TLS credentials of a server from PEM."""
    return grpc.ssl_server_credentials([(key, certificate)])


def channel_credentials(ca: bytes) -> grpc.ChannelCredentials:
    """Return TLS credentials of a device: the authority whose certificates it trusts, in PEM."""
    return grpc.ssl_channel_credentials(ca)
