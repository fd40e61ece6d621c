"""What faces the network: one gRPC server, which lets in whom it knows and passes on what it must.

    python -m airtune.deploy.server.front SETTINGS    as JSON

A caller proves itself in the TLS handshake by a certificate of this server's authority; then the
register says whose key that is, whether it still counts, and what its role may do. Only after that
is anything read of what it sends. Nothing that comes is ever code: an order is a recipe, a ticket a
few words, and what devices and runs say to each other is passed on unread, to processes that listen
on this machine alone.

    /airtune.Server/Attend    a device that waits for tasks
    /airtune.Server/Hello     a device that asks who it is here
    /airtune.Server/Renew     a device with a new key
    /airtune.Split/Measure    a device that measures its link
    /airtune.Split/...        a device's calls to a run, passed on to that run's process
    /airtune.Control/...      operators: Submit, Follow, List, Stop, Evict, Hello, Renew
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import grpc

from airtune.deploy.keys import hash_of
from airtune.deploy.server.audit import LOG_BYTES, Audit
from airtune.deploy.server.authority import replace_certificate
from airtune.deploy.server.control import Control
from airtune.deploy.server.enrolment import Enrolment, Renewal, proof_for
from airtune.deploy.server.gate import Call, Caller, Gate, Requests
from airtune.deploy.server.passing import PASSED_ON, Passing
from airtune.deploy.server.queue import holder
from airtune.deploy.server.runs import Runs
from airtune.deploy.server.site import READY, ServerSettings
from airtune.deploy.server.tls import ServerTls
from airtune.errors import AirtuneError, DeploymentError
from airtune.wire.channel import (
    CONTROL,
    HANDSHAKE_S,
    MAX_CALLS,
    SERVER,
    SERVICE,
    read_json,
    server_options,
)
from airtune.wire.link import measure_handler
from airtune.wire.message import VERSION
from airtune.wire.versions import why_refused

_LOOK_S = 1.0
_LOGS = 3
log = logging.getLogger("airtune.server")


@dataclass(slots=True, eq=False)
class _Attending:
    """A device that waits for tasks."""

    name: str
    node: int
    since: str
    version: str
    public: str
    """Its key; empty at a server without keys."""
    is_asked: bool = False
    """It has been asked for a new key."""
    outbox: queue.SimpleQueue[dict[str, Any] | tuple[grpc.StatusCode, str]] = field(
        default_factory=queue.SimpleQueue
    )


@dataclass(slots=True)
class _Agent:
    """The process that calls for a device, over as many connections as it takes."""

    session: str
    node: int
    tickets: dict[str, tuple[int, Any]] = field(default_factory=dict)
    """Run and ticket of each token that it was handed, for as long as that run goes on."""
    taken: set[str] = field(default_factory=set)
    """Of these, what it has said that it got."""
    open: set[str] = field(default_factory=set)
    """Of these, what it has neither answered nor given up."""
    is_draining: bool = False
    """It ends what it has begun and takes nothing new, until its process is another."""


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
        self._renewal, self._told = Renewal(settings, audit), b""
        self._attending: dict[str, _Attending] = {}
        self._agents: dict[str, _Agent] = {}
        """By name; one that calls again from the same process is the same node."""
        self._numbers = itertools.count(1)
        self.runs = Runs(
            settings.state, present=self.present, labels=self._gate.labels, hand=self._hand
        )
        self._passing = Passing(self.runs, self._has_answered)
        self._control = Control(settings, self.runs, self, self._gate, audit)
        self._lock = threading.RLock()
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
        measure = measure_handler(lambda token: True)
        of_devices: dict[str, Call] = {
            name: partial(self._passing.call, name) for name in PASSED_ON
        }
        of_devices["Measure"] = lambda who, requests, context: measure(requests, context)
        services = {
            CONTROL: {
                name: self._gate.guarded(call, role)
                for name, (call, role) in self._control.calls.items()
            },
            SERVER: {
                name: self._gate.guarded(call, "device")
                for name, call in (
                    ("Attend", self._attend),
                    ("Hello", self._renewal.hello),
                    ("Renew", self._renewal.renew),
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
        server.start()
        self.runs.start_free()
        threading.Thread(target=self._look_after, name="revoked keys", daemon=True).start()
        return port

    def _bind(self, server: grpc.Server) -> int:
        address = f"{self._settings.host}:{self._settings.port}"
        try:
            if self._tls is None:
                return int(server.add_insecure_port(address))
            return int(server.add_secure_port(address, self._tls.credentials(of_callers=True)))
        except RuntimeError as error:
            raise DeploymentError(f"cannot listen at {address}: {error}") from error

    def _look_after(self) -> None:
        """Follow what commands have changed in the state folder, and what time changes."""
        while not self._closing.wait(_LOOK_S):
            try:
                if self._gate.refresh():
                    self.runs.tell_present()  # labels may be others
                    self._put_out_refused()
                    self._ask_renewals()
                if self._tls is not None and self._enrolment is not None:
                    replace_certificate(self._tls.files, if_ends_soon=True)
                    self._tls.refresh()
                    self._tell_authority(self._tls.authority)
                    self._enrolment.refresh(self._gate.register)
            except AirtuneError as error:
                log.error("%s", error)

    def _put_out_refused(self) -> None:
        """End the connections of whose key was revoked."""
        with self._lock:
            for name in {*self._attending, *self._passing.names()}:
                why = self._gate.why_refused(name)
                if not why:
                    continue
                log.info("%s is put out: %s", name, why)
                if name in self._attending:
                    self._attending[name].outbox.put((grpc.StatusCode.UNAUTHENTICATED, why))
                self._passing.cut(name)

    def _ask_renewals(self) -> None:
        """Ask devices for a new key that are to have one."""
        with self._lock:
            for name, one in self._attending.items():
                row = self._gate.register.devices.get(name)
                if row is not None and row.is_to_renew and not one.is_asked:
                    one.is_asked = True
                    one.outbox.put({"renew": True})

    def _tell_authority(self, authority: bytes) -> None:
        """Send all who are connected the authorities to trust, where these have changed."""
        before, self._told = self._told, authority
        if before in (b"", authority):
            return
        with self._lock:
            attending = list(self._attending.values())
        for one in attending:
            one.outbox.put({"proof": proof_for(self._settings, one.name, one.public)})

    def close(self) -> None:
        """End runs and connections."""
        self._closing.set()
        self.runs.close()
        if self._enrolment is not None:
            self._enrolment.close()
        if self._server is not None:
            self._server.stop(1.0).wait()
        self._audit.close()

    def present(self) -> dict[str, int]:
        """Return the node of every device that is connected, by name."""
        with self._lock:
            return {
                name: one.node
                for name, one in self._attending.items()
                if not self._agents[name].is_draining
            }

    def devices(self) -> list[dict[str, Any]]:
        """Return what is known of every device, by name."""
        with self._lock:
            attending = dict(self._attending)
        labels, runs, rows = self._gate.labels(), self.runs.rows, []
        for name in sorted({*attending, *labels}):
            one, agent = attending.get(name), self._agents.get(name)
            is_draining = agent is not None and agent.is_draining
            rows.append(
                {
                    "name": name,
                    "status": "offline" if one is None else "draining" if is_draining else "online",
                    "tasks": 0 if agent is None else len(agent.open),
                    "since": "" if one is None else one.since,
                    "version": "" if one is None else one.version,
                    "labels": dict(labels.get(name, {})),
                    "run": holder(name, labels.get(name, {}), runs),
                }
            )
        return rows

    def drain(self, name: str) -> bool:
        """Give a device no new task until its agent is started anew; False where it is not there."""
        with self._lock:
            if name not in self._attending:
                return False
            self._agents[name].is_draining = True
        self.runs.tell_present()
        log.info("%s takes no new task", name)
        return True

    def evict(self, number: int, name: str) -> bool:
        """Take a device out of a run; False where it is not in it. Its task counts as failed."""
        if not self.runs.evict(number, name):
            return False
        with self._lock:
            agent = self._agents.get(name)
            tokens = (
                []
                if agent is None
                else [token for token, (of, _) in agent.tickets.items() if of == number]
            )
        for token in tokens:
            self.runs.tell_failed(number, token, "an operator took this device out of the run")
        return True

    def _hand(self, node: int, run: int, ticket: Any) -> None:
        """Hand a ticket to a device; one whose line broke gets it when it calls again."""
        token = str(ticket["token"])
        with self._lock:
            name = next((name for name, one in self._agents.items() if one.node == node), "")
            agent = self._agents.get(name)
            if agent is not None and name in self._attending and not agent.is_draining:
                for old in [
                    t for t, (of, _) in agent.tickets.items() if self.runs.port(of) is None
                ]:
                    del agent.tickets[old]
                    agent.taken.discard(old)
                    agent.open.discard(old)
                agent.tickets[token] = run, ticket
                agent.open.add(token)
                self._attending[name].outbox.put({"ticket": ticket})
                return
        self.runs.tell_failed(run, token, "this device is not connected")

    def _attend(
        self, who: Caller, requests: Requests, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Keep a device's line open: tickets go out, what it could not do comes back."""
        hello = read_json(next(requests, b""))
        version = str(hello.get("version"))
        if why := why_refused(VERSION, version, name=who.name):
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, why)
        mine, agent = self._joined(who, str(hello.get("session")), version)
        if self._tls is not None:
            trusted = hello.get("authority")
            if trusted and not (who.is_followed and trusted == hash_of(self._tls.authority)):
                mine.outbox.put({"proof": proof_for(self._settings, who.name, who.public)})
            self._ask_renewals()
        if not context.add_callback(lambda: mine.outbox.put((grpc.StatusCode.CANCELLED, ""))):
            mine.outbox.put((grpc.StatusCode.CANCELLED, ""))
        self.runs.tell_present()
        log.info("%s is connected", who.name)
        threading.Thread(
            target=self._hear, args=(agent, requests), name=f"from {who.name}", daemon=True
        ).start()
        try:
            yield json.dumps({"welcome": who.name}).encode()
            while not isinstance(item := mine.outbox.get(), tuple):
                yield json.dumps(item).encode()
            context.abort(*item)
        finally:
            with self._lock:
                has_left = self._attending.get(who.name) is mine
                if has_left:
                    del self._attending[who.name]
            if has_left:
                log.info("%s has left", who.name)
            self.runs.tell_present()

    def _joined(self, who: Caller, session: str, version: str) -> tuple[_Attending, _Agent]:
        """Make a device's line the one that it has; an earlier one is ended."""
        name = who.name
        with self._lock:
            before = self._attending.get(name)
            if before is not None:
                before.outbox.put(
                    (
                        grpc.StatusCode.ALREADY_EXISTS,
                        "another agent has called with this device's key",
                    )
                )
            agent = self._agents.get(name)
            if agent is None or agent.session != session:
                agent = self._agents[name] = _Agent(session, next(self._numbers))
            mine = self._attending[name] = _Attending(name, agent.node, _now(), version, who.public)
            for token in agent.tickets.keys() - agent.taken:
                mine.outbox.put({"ticket": agent.tickets[token][1]})
        return mine, agent

    def _has_answered(self, name: str, token: str) -> None:
        """Know that a device has answered a task."""
        with self._lock:
            agent = self._agents.get(name)
            if agent is not None:
                agent.open.discard(token)

    def _hear(self, agent: _Agent, requests: Requests) -> None:
        """Take in which tickets an agent has got, and which tasks it could not do."""
        with suppress(grpc.RpcError):  # the line has ended
            for request in requests:
                said = read_json(request)
                token = str(said.get("token"))
                if token not in agent.tickets:
                    continue
                if "why" in said:
                    agent.open.discard(token)
                    self.runs.tell_failed(agent.tickets[token][0], token, str(said["why"]))
                agent.taken.add(token)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


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
