"""The server's gRPC port: it authenticates callers and passes devices' calls on to their runs.

    python -m airtune.deploy.server.front SETTINGS    as JSON

A caller proves itself in the TLS handshake by a certificate of this server's authority; then the
register says whose key that is, whether it still counts, and what its role may do. Only after that
is anything read of what it sends. Nothing that comes is ever code: an order is a recipe, a ticket a
few words, and what devices and runs say to each other is passed on unread, to processes that listen
on this machine alone.

    /airtune.Server/Attend    a device that waits for tasks
    /airtune.Server/Hello     a device that asks who it is here
    /airtune.Server/Renew     a device with a new key
    /airtune.Server/Probe     a device that says what it has measured of itself
    /airtune.Split/Measure    a device that measures its link
    /airtune.Split/...        a device's calls to a run, passed on to that run's process
    /airtune.Control/...      operators: Submit, Follow, List, Stop, Evict, Hello, Renew
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from concurrent import futures
from functools import partial
from logging.handlers import RotatingFileHandler
from pathlib import Path

import grpc

from airtune.deploy.server.audit import LOG_BYTES, Audit
from airtune.deploy.server.authority import replace_certificate
from airtune.deploy.server.control import Control
from airtune.deploy.server.enrolment import Enrolment, Renewal
from airtune.deploy.server.gate import Call, Gate
from airtune.deploy.server.membership import Membership
from airtune.deploy.server.passing import PASSED_ON, Passing
from airtune.deploy.server.probes import Probes
from airtune.deploy.server.site import READY, ServerSettings
from airtune.deploy.server.tls import ServerTls
from airtune.errors import AirtuneError, DeploymentError
from airtune.wire.channel import CONTROL, HANDSHAKE_S, MAX_CALLS, SERVER, SERVICE, server_options

_LOOK_S = 1.0
_LOGS = 3
log = logging.getLogger("airtune.server")


class Front:
    """The server's one door."""

    def __init__(self, settings: ServerSettings) -> None:
        """Hold no connection yet; see `serve`.

        Raises:
            DeploymentError: if the register or the certificates are damaged.
        """
        self._audit = audit = Audit(settings.state)
        self._settings, self._gate = settings, Gate(settings, audit)
        self._tls = None if settings.insecure else ServerTls(settings.tls)
        self._enrolment = None if self._tls is None else Enrolment(settings, audit, self._tls)
        self._renewal, self.members = Renewal(settings, audit), Membership(settings, self._gate)
        self.runs = self.members.runs
        self._probes = Probes(settings)
        self._passing = Passing(self.runs, self.members.has_answered)
        self._control = Control(settings, self.runs, self.members, self._gate, audit)
        if self._tls is not None:
            self.members.tell_authority(self._tls.authority)
        self._closing = threading.Event()
        self._server: grpc.Server | None = None

    def serve(self, *, handshake_s: float = HANDSHAKE_S) -> int:
        """Bind the port and begin to serve; returns the port.

        Args:
            handshake_s: how long a caller may take to prove itself.

        Raises:
            DeploymentError: if the port cannot be had.
        """
        self._server = server = grpc.server(
            futures.ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="call"),
            options=server_options(handshake_s=handshake_s),
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        of_devices: dict[str, Call] = {
            name: partial(self._passing.call, name) for name in PASSED_ON
        }
        of_devices["Measure"] = self._probes.measure
        services = {
            CONTROL: {
                name: self._gate.guarded(call, role)
                for name, (call, role) in self._control.calls.items()
            },
            SERVER: {
                name: self._gate.guarded(call, "device")
                for name, call in (
                    ("Attend", self.members.attend),
                    ("Hello", self._renewal.hello),
                    ("Renew", self._renewal.renew),
                    ("Probe", self._probes.keep),
                )
            },
            SERVICE: {
                name: self._gate.guarded(call, "device") for name, call in of_devices.items()
            },
        }
        server.add_generic_rpc_handlers(
            tuple(
                grpc.method_handlers_generic_handler(service, handlers)
                for service, handlers in services.items()
            )
        )
        port = self._bind(server)
        if self._enrolment is not None:  # who finds the server up can enrol
            self._enrolment.refresh(self._gate.register)
        server.start()
        self.runs.start_free()
        threading.Thread(
            target=self._look_after, args=(port,), name="revoked keys", daemon=True
        ).start()
        return port

    def _bind(self, server: grpc.Server) -> int:
        address = f"{self._settings.host}:{self._settings.port}"
        try:
            if self._tls is None:
                return int(server.add_insecure_port(address))
            return int(server.add_secure_port(address, self._tls.credentials()))
        except RuntimeError as error:
            raise DeploymentError(f"cannot listen at {address}: {error}") from error

    def _look_after(self, port: int) -> None:
        """Follow what commands have changed in the state folder, and what time changes."""
        host = self._settings.own_host
        while not self._closing.wait(_LOOK_S):
            try:
                if self._gate.refresh():
                    self.runs.tell_present()  # labels may be others
                    self._put_out_refused()
                    self.members.ask_renewals()
                if self._tls is not None and self._enrolment is not None:
                    replace_certificate(self._tls.files, if_ends_soon=True)
                    if self._tls.refresh(host, port):
                        self._enrolment.close()  # it is opened again with the new certificate
                        self.members.tell_authority(self._tls.authority)
                    self._enrolment.refresh(self._gate.register)
            except AirtuneError as error:
                log.error("%s", error)

    def _put_out_refused(self) -> None:
        """End the connections of whose key was revoked."""
        for name in self.members.names() | self._passing.names():
            if why := self._gate.why_refused(name):
                log.info("%s is put out: %s", name, why)
                self.members.put_out(name, why)
                self._passing.cut(name)

    def close(self) -> None:
        """End runs and connections."""
        self._closing.set()
        self.runs.close()
        if self._enrolment is not None:
            self._enrolment.close()
        if self._server is not None:
            self._server.stop(1.0).wait()
        if self._tls is not None:
            self._tls.close()
        self._audit.close()


def _serve(settings: ServerSettings) -> None:
    stopping = threading.Event()
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, lambda number, frame: stopping.set())

    def hear_supervisor() -> None:
        """End where the supervisor is gone: nobody else could end this process."""
        while os.read(sys.stdin.fileno(), 1):
            pass
        stopping.set()

    front = Front(settings)
    front.serve()
    print(READY, flush=True)
    threading.Thread(target=hear_supervisor, name="supervisor", daemon=True).start()
    stopping.wait()
    front.close()


def main() -> None:
    """Serve until told to stop, or until the supervisor is gone."""
    said = json.loads(sys.argv[1])
    settings = ServerSettings(**{**said, "state": Path(said["state"])})
    handler = RotatingFileHandler(
        settings.state / "server.log", maxBytes=LOG_BYTES, backupCount=_LOGS
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    _serve(settings)


if __name__ == "__main__":
    main()
