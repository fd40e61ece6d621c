"""The agent: what runs on a device for as long as its owner lets it.

    agent (this process)  supervises the others and starts them again
    ├── worker            holds base model, data and device state; does the work; may be capped
    ├── SuperNode         Flower's: calls the server and takes its messages
    └── messenger         forks a client process for each, which hands it to the worker

A device only calls out. A SuperNode that was killed is refused by the server until the server has
missed its heartbeats (about a minute), so the agent waits and tries again; a key that stays refused
longer than that is not known, or was revoked.
"""

from __future__ import annotations

import datetime
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from airtune.deploy.hatch import new_token
from airtune.deploy.memory import check_cap, close_pipes, start_capped
from airtune.deploy.node import FlowerNode
from airtune.deploy.reach import check_clock, check_server
from airtune.deploy.worker import WorkerSettings
from airtune.errors import (
    ConnectionFailedError,
    DataError,
    DeploymentError,
    KeyRefusedError,
)

REFUSED_S = 100.0
"""A key that is refused for longer is not one whose last connection is still remembered."""
_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0
_LOOK_S = 0.5
START_S = 600.0
"""How long a worker may take to start: a slow card takes minutes to read torch."""
_HEALTHY = "SuperNode ID"


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What an agent is started with."""

    server: str
    """HOST:PORT."""
    data: str
    key: Path | None = None
    """The device's private key; None with `insecure`."""
    authority: Path | None = None
    """Certificate that the server's is checked against."""
    name: str = ""
    """What the device calls itself; with keys, the server knows better."""
    insecure: bool = False
    model: str | None = None
    compute: str = "auto"
    memory_bytes: float | None = None
    """Most that the worker may take; None = no cap."""
    reserve_bytes: float | None = None
    """What of the machine's memory its owner keeps."""
    hours: tuple[datetime.time, datetime.time] | None = None
    """From and until when the device takes part, local time; None = always."""
    probe: Mapping[str, Any] = field(default_factory=dict)
    give_up_s: float = float("inf")
    """How long an unreachable server is tried."""
    refused_s: float = REFUSED_S
    """How long a key that is refused is tried."""
    cache: Path | None = None
    """Where base models that the server hands out are kept; None = it may not hand out any."""


def read_hours(text: str) -> tuple[datetime.time, datetime.time]:
    """Return the hours of a text such as 22:00-05:00.

    Raises:
        DeploymentError: if it is none.

    >>> read_hours("22:00-05:30")[1].minute
    30
    """
    found = re.fullmatch(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})", text.strip())
    try:
        if found is None:
            raise ValueError(text)
        from_hour, from_minute, to_hour, to_minute = map(int, found.groups())
        return datetime.time(from_hour, from_minute), datetime.time(to_hour, to_minute)
    except ValueError as error:
        raise DeploymentError(f"--when must be like 22:00-05:00, got {text!r}") from error


def is_open(hours: tuple[datetime.time, datetime.time] | None, now: datetime.time) -> bool:
    """Return whether a device takes part at this hour; hours may pass midnight.

    >>> is_open(read_hours("22:00-05:00"), datetime.time(23, 0))
    True
    """
    if hours is None:
        return True
    begin, end = hours
    return begin <= now < end if begin <= end else now >= begin or now < end


def check_settings(settings: AgentSettings) -> None:
    """Refuse what cannot work before anything is started.

    Raises:
        DeploymentError: if key, certificate, address or memory cap cannot work.
        DataError: if there are no data.
    """
    host, _, port = settings.server.rpartition(":")
    if not host or not port.isdecimal():
        raise DeploymentError(f"--server must be HOST:PORT, got {settings.server!r}")
    if settings.data != "recipe" and not Path(settings.data).expanduser().exists():
        raise DataError(f"there are no data at {settings.data}; give --data a file or folder")
    if not settings.insecure:
        for what, path in (("key", settings.key), ("ca", settings.authority)):
            if path is None or not path.is_file():
                raise DeploymentError(
                    f"there is no file at --{what} {path}; copy the device's folder that airtune "
                    "device add has made, or say --insecure for a server without TLS and keys"
                )
    if settings.memory_bytes is not None:
        check_cap(settings.memory_bytes)


class Agent:
    """Supervises worker and SuperNode."""

    def __init__(
        self, settings: AgentSettings, *, say: Callable[[str], None], folder: Path | None = None
    ) -> None:
        """Start nothing yet.

        Args:
            settings: the owner's.
            say: told what happens, a sentence each.
            folder: for logs, socket and Flower's files; None = a temporary one.
        """
        self._settings, self._say = settings, say
        self._temporary = tempfile.TemporaryDirectory(prefix="airtune-")
        self._run_folder = Path(self._temporary.name)
        self._log = (folder or self._run_folder) / "supernode.log"
        self._worker: subprocess.Popen[bytes] | None = None
        self._node: FlowerNode | None = None
        self._stopping = threading.Event()
        self._refused_since_s: float | None = None
        self._is_connected = False

    def run(self) -> None:
        """Take part until told to stop.

        Raises:
            KeyRefusedError: if the server does not know the key, or it was revoked.
            DeploymentError: if the server is not who it should be, or the worker cannot start.
            ConnectionFailedError: if nobody answers for longer than the settings allow.
        """
        check_settings(self._settings)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        previous = {kind: signal.signal(kind, self._on_signal)
                    for kind in (signal.SIGTERM, signal.SIGINT)}  # fmt: skip
        try:
            self._supervise()
        finally:
            self._end()
            for kind, handler in previous.items():
                signal.signal(kind, handler)
            self._temporary.cleanup()

    def _supervise(self) -> None:
        is_told = False
        while not self._stopping.is_set():
            if not is_open(self._settings.hours, datetime.datetime.now().time()):
                if not is_told:
                    self._say("outside the hours of --when: this device takes no part until then")
                    is_told = True
                self._end()
                self._sleep(10.0)
                continue
            is_told = False
            self._keep_worker()
            self._keep_node()
            self._sleep(_LOOK_S)

    def _keep_worker(self) -> None:
        if self._worker is not None and self._worker.poll() is None:
            return
        if self._worker is not None:
            self._say(f"the worker ended with code {self._worker.returncode}; it is started again")
            close_pipes(self._worker)
            self._sleep(_PAUSE_S)
        if self._stopping.is_set():
            return
        settings, folder = self._settings, self._run_folder
        new_token(folder / "token")
        WorkerSettings(
            socket=str(folder / "hatch"), token_file=str(folder / "token"), data=settings.data,
            model=settings.model, compute=settings.compute, memory_bytes=settings.memory_bytes,
            reserve_bytes=settings.reserve_bytes, probe=dict(settings.probe),
            host=settings.server.rpartition(":")[0],
            authority=None if settings.insecure else str(settings.authority),
            cache=None if settings.cache is None else str(settings.cache),
        ).save(folder / "worker.json")  # fmt: skip
        command = [sys.executable, "-m", "airtune.deploy.worker", str(folder / "worker.json")]
        self._worker = start_capped(command, cap_bytes=settings.memory_bytes, timeout_s=START_S)
        self._say("the worker is ready")

    def _keep_node(self) -> None:
        if self._stopping.is_set() or (self._node is not None and self._node.is_running()):
            self._note_health()
            return
        if self._node is not None:
            self._on_node_end()
        if self._stopping.is_set():
            return
        self._await_server()
        if self._stopping.is_set():
            return
        self._node = self._new_node()

    def _note_health(self) -> None:
        """Say once that the server took this device."""
        if self._is_connected or _HEALTHY not in _text(self._log):
            return
        self._is_connected, self._refused_since_s = True, None
        self._say(f"connected to {self._settings.server}")

    def _on_node_end(self) -> None:
        """Read why Flower's node ended, and wait or give up.

        Raises:
            KeyRefusedError: if the key has been refused for too long.
        """
        if self._node is not None:
            self._node.end(grace_s=2.0)
            self._node = None
        said, now = _text(self._log), time.monotonic()
        if self._is_connected:
            self._is_connected = False
            self._say("the connection ended; trying again")
        if "Exit Code: 305" not in said and "UNAUTHORIZED" not in said.upper():
            self._sleep(_PAUSE_S)
            return
        if self._refused_since_s is None:
            self._refused_since_s = now
            self._say("the server refuses this key at present: it may still hold the last "
                      "connection; trying again")  # fmt: skip
        if "must be registered" in said or now - self._refused_since_s > self._settings.refused_s:
            raise KeyRefusedError(
                f"the server at {self._settings.server} does not know the key "
                f"{self._settings.key}, or it was revoked; ask for airtune device add there "
                f"(Flower says: {last_said(said)})"
            )
        self._sleep(5.0)

    def _await_server(self) -> None:
        pause_s, began = _PAUSE_S, time.monotonic()
        while not self._stopping.is_set():
            try:
                check_server(self._settings.server, self._settings.authority)
                check_clock(self._settings.server, self._settings.authority)
                return
            except ConnectionFailedError as error:
                if time.monotonic() - began > self._settings.give_up_s:
                    raise
                if pause_s == _PAUSE_S:
                    self._say(f"{error}; trying again")
                self._sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _new_node(self) -> FlowerNode:
        settings, folder = self._settings, self._run_folder
        proof = ["--insecure"] if settings.insecure else [
            "--root-certificates", str(settings.authority),
            "--auth-supernode-private-key", str(settings.key)]  # fmt: skip
        return FlowerNode(
            settings.server, proof=proof, home=folder / "flower", log=self._log,
            secret=folder / "starter",
            config={"socket": str(folder / "hatch"), "token": str(folder / "token"),
                    "name": settings.name},
        )  # fmt: skip

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopping.is_set() and time.monotonic() < until:
            time.sleep(min(0.2, seconds))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping.set()

    def _end(self) -> None:
        if self._node is not None:
            self._node.end(grace_s=5.0)
            self._node = None
        if self._worker is not None:
            self._worker.terminate()
            try:
                self._worker.wait(5.0)
            except subprocess.TimeoutExpired:
                self._worker.kill()
            close_pipes(self._worker)
            self._worker = None


def last_said(text: str) -> str:
    r"""Return the line of Flower's log that says most.

    >>> last_said("INFO: up\n[code: 2004] Failed to activate SuperNode.\n\nFor more, visit")
    '[code: 2004] Failed to activate SuperNode.'
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    coded = [line for line in lines if line.startswith("[code:")]
    return (coded or lines or ["nothing"])[-1]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
