"""The devices of a server: who is connected, and which tasks each has been handed."""

from __future__ import annotations

import itertools
import json
import logging
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc

from airtune.deploy.keys import hash_of
from airtune.deploy.server.enrolment import proof_for
from airtune.deploy.server.gate import Caller, Gate, Requests
from airtune.deploy.server.queue import holder
from airtune.deploy.server.runs import Runs
from airtune.deploy.server.site import ServerSettings
from airtune.wire.channel import read_json
from airtune.wire.message import VERSION
from airtune.wire.versions import why_refused

log = logging.getLogger("airtune.server")


@dataclass(slots=True, eq=False)
class _Attending:
    """A device that waits for tasks."""

    name: str
    node: int
    since: str
    version: str
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


class Membership:
    """The lines of devices that wait for tasks, and the runs whose tasks they get."""

    def __init__(self, settings: ServerSettings, gate: Gate) -> None:
        """Know no device yet.

        Args:
            settings: the server's.
            gate: knows labels, and whose key was revoked.
        """
        self._settings, self._gate, self._authority = settings, gate, b""
        self._attending: dict[str, _Attending] = {}
        self._agents: dict[str, _Agent] = {}
        """By name; one that calls again from the same process is the same node."""
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()
        self.runs = Runs(
            settings.state, present=self.present, labels=gate.labels, hand=self.hand, wake=self.wake
        )

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

    def wake(self, names: Iterable[str]) -> None:
        """Tell devices that a task will come soon."""
        with self._lock:
            for name in names:
                if name in self._attending:
                    self._attending[name].outbox.put({"soon": True})

    def hand(self, node: int, run: int, ticket: Any) -> None:
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

    def attend(
        self, who: Caller, requests: Requests, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Keep a device's line open: tickets go out, what it could not do comes back."""
        hello = read_json(next(requests, b""))
        version = str(hello.get("version"))
        if why := why_refused(VERSION, version, name=who.name):
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, why)
        mine, agent = self._joined(who, str(hello.get("session")), version)
        if not self._settings.insecure:
            trusted = hello.get("authority")
            if trusted and not (who.is_followed and trusted == hash_of(self._authority)):
                mine.outbox.put({"proof": proof_for(self._settings, who.name, who.public)})
            self.ask_renewals()
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

    def names(self) -> set[str]:
        """Return the devices that are connected."""
        with self._lock:
            return set(self._attending)

    def put_out(self, name: str, why: str) -> None:
        """End the line of a device that may be here no longer."""
        with self._lock:
            if name in self._attending:
                self._attending[name].outbox.put((grpc.StatusCode.UNAUTHENTICATED, why))

    def ask_renewals(self) -> None:
        """Ask devices for a new key that are to have one."""
        with self._lock:
            for name, one in self._attending.items():
                row = self._gate.register.devices.get(name)
                if row is not None and row.is_to_renew and not one.is_asked:
                    one.is_asked = True
                    one.outbox.put({"renew": True})

    def tell_authority(self, authority: bytes) -> None:
        """Send all who are connected the authorities to trust, where these have changed."""
        before, self._authority = self._authority, authority
        if before in (b"", authority):
            return
        known = self._gate.register.devices
        with self._lock:
            attending = [one for name, one in self._attending.items() if name in known]
        for one in attending:  # some have taken a new key since they called
            public = known[one.name].public
            one.outbox.put({"proof": proof_for(self._settings, one.name, public)})

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
            mine = self._attending[name] = _Attending(name, agent.node, _now(), version)
            for token in agent.tickets.keys() - agent.taken:
                mine.outbox.put({"ticket": agent.tickets[token][1]})
        return mine, agent

    def has_answered(self, name: str, token: str) -> None:
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
