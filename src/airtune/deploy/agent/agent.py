"""The agent: the process that runs on a device and takes part in runs.

    agent (this process)  calls the server, waits for tickets, and starts what works
    └── worker            holds base model, data and device state; does the tasks; may be capped

A device only calls out. The worker is started when the first task comes and ended when none has come
for a while: a device that waits holds a connection and little else. Code never comes: a task is a
checked message to the airtune that is installed here.
"""

from __future__ import annotations

import datetime
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import grpc

from airtune.deploy.agent.attend import Attending, Ended
from airtune.deploy.agent.settings import AgentSettings, check_settings, is_open
from airtune.deploy.agent.workplace import Workplace
from airtune.deploy.caller import ServerClient, check_server
from airtune.deploy.keys import days_left
from airtune.deploy.renew import enrol_self, finish_renewal, follow
from airtune.errors import AirtuneError, ConnectionFailedError, DeploymentError, KeyRefusedError
from airtune.wire.channel import SERVER

_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_LOOK_S, _ENROL_PAUSE_S = 0.5, 5.0


class Agent:
    """Waits for tasks and has them done."""

    def __init__(self, settings: AgentSettings, *, say: Callable[[str], None]) -> None:
        """Start nothing yet.

        Args:
            settings: the owner's.
            say: told what happens, a sentence each.
        """
        self._settings, self._say = settings, say
        self._stopping = threading.Event()
        self._attending: Attending | None = None
        self._refused_since_s: float | None = None
        self._renewing = threading.Lock()

    def run(self) -> None:
        """Take part until told to stop.

        Raises:
            KeyRefusedError: if the server does not know the key, or it was revoked.
            DeploymentError: if the server is not who it should be, or the worker cannot start.
            ConnectionFailedError: if nobody answers for longer than the settings allow.
        """
        self._enrol()
        check_settings(self._settings)
        previous = {
            kind: signal.signal(kind, self._on_signal) for kind in (signal.SIGTERM, signal.SIGINT)
        }
        threading.Thread(target=self._watch, name="hours", daemon=True).start()
        try:
            with tempfile.TemporaryDirectory(prefix="airtune-") as folder:
                self._supervise(Workplace(self._settings, Path(folder), say=self._say))
        finally:
            self._stopping.set()
            for kind, handler in previous.items():
                signal.signal(kind, handler)

    def _enrol(self) -> None:
        """Finish a renewal that was cut off; come by a certificate where there is a code."""
        settings = self._settings
        if settings.proof is None:
            return
        finish_renewal(settings.proof)
        began, is_told = time.monotonic(), False
        while settings.code:
            try:
                if enrol_self(settings.server, settings.code, settings.proof, name=settings.name):
                    self._say(
                        f"enrolled as {settings.name}; the key stays here, in {settings.proof.key}"
                    )
                return
            except ConnectionFailedError as error:
                if time.monotonic() - began > settings.give_up_s:
                    raise
                if not is_told:
                    self._say(f"{error}; trying again")
                is_told = True
            time.sleep(_ENROL_PAUSE_S)

    def _supervise(self, place: Workplace) -> None:
        """Attend at the server, again and again."""
        is_told, lost_since_s, pause_s = False, time.monotonic(), _PAUSE_S
        try:
            while not self._stopping.is_set():
                if not self._is_open():
                    if not is_told:
                        self._say(
                            "outside the hours of --when: this device takes no part until then"
                        )
                    is_told = True
                    place.end()
                    self._stopping.wait(10.0)
                    continue
                is_told = False
                self._attending = Attending(
                    self._settings.server,
                    self._settings.proof,
                    name=self._settings.name,
                    place=place,
                    hear=self._hear,
                )
                ended = self._attending.attend(on_welcome=self._say_connected)
                if self._stopping.is_set() or not self._is_open():
                    continue
                if ended.code is grpc.StatusCode.ALREADY_EXISTS:
                    raise DeploymentError(
                        f"{ended.why}; give every device its own key, and run one agent with it"
                    )
                if ended.was_connected:
                    self._say(f"the connection ended ({ended.why}); trying again")
                    lost_since_s, pause_s, self._refused_since_s = time.monotonic(), _PAUSE_S, None
                else:
                    self._judge(ended, time.monotonic() - lost_since_s, is_new=pause_s == _PAUSE_S)
                self._stopping.wait(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        finally:
            place.end()

    def _hear(self, said: Mapping[str, Any]) -> None:
        """Do what the server says of keys and certificates, beside the line, which stays."""
        link = ServerClient(self._settings.server, self._settings.proof, SERVER)

        def act() -> None:
            with self._renewing:
                try:
                    done = follow(link, said)
                except AirtuneError as error:
                    done = f"keys and certificates stay as they are: {error}"
            if done:
                self._say(done)

        threading.Thread(target=act, name="certificates", daemon=True).start()

    def _judge(self, ended: Ended, lost_s: float, *, is_new: bool) -> None:
        """Give up, or let it be tried again.

        Raises:
            KeyRefusedError: if the key has been refused for too long.
            DeploymentError: if the server is another, or this device's certificate has ended.
            ConnectionFailedError: if nobody has answered for too long.
        """
        if ended.code is grpc.StatusCode.FAILED_PRECONDITION:  # one of the two will be updated
            if is_new:
                self._say(f"{ended.why}; trying again")
            return
        if not (ended.is_refused or self._is_dropped(lost_s, is_new=is_new)):
            return
        now = time.monotonic()
        if self._refused_since_s is None:
            self._refused_since_s = now
            self._say(f"the server refuses this device at present ({ended.why}); trying again")
        if now - self._refused_since_s >= self._settings.refused_s:
            raise KeyRefusedError(
                f"the server at {self._settings.server} does not know the key of this device, or "
                "it was revoked, or the server's clock is wrong; ask for airtune device list and "
                f"airtune server status there (it says: {ended.why}){self._unused_code()}"
            )

    def _is_dropped(self, lost_s: float, *, is_new: bool) -> bool:
        """Return whether the server is there: it drops who has no valid certificate without a word."""
        proof = self._settings.proof
        try:
            check_server(self._settings.server, None if proof is None else proof.authority)
        except ConnectionFailedError as error:
            if lost_s > self._settings.give_up_s:
                raise
            if is_new:
                self._say(f"{error}; trying again")
            return False
        if proof is not None:
            days_left(proof.certificate)  # refuses one that has ended
        return proof is not None

    def _unused_code(self) -> str:
        proof = self._settings.proof
        if not self._settings.code or proof is None:
            return ""
        return f"; the code was not used, as {proof.key} is here: remove it to enrol with a new key"

    def _say_connected(self) -> None:
        self._refused_since_s = None
        self._say(f"connected to {self._settings.server}")

    def _is_open(self) -> bool:
        return is_open(self._settings.hours, datetime.datetime.now().time())

    def _watch(self) -> None:
        """End the connection when the hours are over, or when told to stop."""
        while not self._stopping.wait(_LOOK_S):
            if not self._is_open():
                self._leave()
        self._leave()

    def _leave(self) -> None:
        attending = self._attending
        if attending is not None:
            attending.leave()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping.set()
