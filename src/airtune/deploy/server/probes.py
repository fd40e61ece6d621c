"""What devices have measured of themselves, kept where plans read it: STATE/probes/NAME.json.

A device measures its link with the server (`airtune.wire.link`) and then sends its probe file. What
came up is what this server has counted, whatever the file says; the rest is the device's own word,
as it is of any probe file.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import grpc

from airtune.deploy.server.gate import Caller, Requests
from airtune.deploy.server.site import ServerSettings
from airtune.errors import FleetError
from airtune.fleet.probe import check_probe
from airtune.records import write_atomically
from airtune.wire.channel import read_json
from airtune.wire.link import LinkMeter

MAX_PROBE_BYTES = 16 << 10


class Probes:
    """The measurements of a server's devices."""

    def __init__(self, settings: ServerSettings) -> None:
        """Know of none since the start."""
        self._folder = settings.probes
        self._up_bps: dict[str, float] = {}
        self._measuring: set[str] = set()
        self._lock = threading.Lock()

    def measure(
        self, who: Caller, requests: Requests, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Measure a device's link, one call at a time."""
        with self._lock:
            is_measured = who.name in self._measuring
            self._measuring.add(who.name)
        if is_measured:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "this device is being measured")
        meter = LinkMeter()
        try:
            yield from meter.answers(requests, context)
        finally:
            with self._lock:
                self._measuring.discard(who.name)
                if meter.up_bps:
                    self._up_bps[who.name] = meter.up_bps

    def keep(
        self, who: Caller, requests: Requests, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Keep a device's probe, with the uplink as this server measured it."""
        content = next(requests, b"")
        up_bps = self._up_bps.get(who.name)
        if up_bps is None:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the link of {who.name} was not measured here since the server started",
            )
        if len(content) > MAX_PROBE_BYTES:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"a probe has at most {MAX_PROBE_BYTES} bytes, got {len(content)}",
            )
        document = read_json(content) | {"name": who.name, "up_mbps": (up_bps or 0.0) / 1e6}
        try:
            check_probe(document, f"the probe of {who.name}")
        except FleetError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        write_atomically(self._folder / f"{who.name}.json", json.dumps(document, indent=1))
        yield json.dumps({"name": who.name, "up_mbps": document["up_mbps"]}).encode()
