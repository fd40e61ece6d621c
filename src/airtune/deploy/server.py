"""The server: Flower's SuperLink under supervision, with its keys, its runs and its state folder.

    STATE/tls/          authority and server certificate
    STATE/devices.json  who may connect
    STATE/superlink.db  Flower's state: nodes and the list of runs
    STATE/runs/         records, checkpoints and reports of runs
    STATE/server.json   process and address of the server that runs now
    STATE/server.log    what SuperLink says

SuperLink outlives runs, and is started again where it ends by itself. A run that it took along goes
on from its own checkpoint: airtune run --resume.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from airtune.deploy.admission import register_devices
from airtune.deploy.flower_cli import Link, environment, program
from airtune.deploy.keys import ensure_certificates
from airtune.deploy.processes import end_group, is_alive
from airtune.deploy.site import ServerSettings, read_document, running
from airtune.errors import DeploymentError
from airtune.records import storage, write_atomically

_READY_S = 60.0
_CALM_S = 60.0
"""A SuperLink that lived this long is started again at once."""
_LONGEST_PAUSE_S = 30.0


def start(settings: ServerSettings, *, say: Callable[[str], None]) -> None:
    """Run the server until it is told to stop; in the foreground, as service managers like it.

    Args:
        settings: where and how.
        say: told what happens, a sentence each.

    Raises:
        DeploymentError: if it is running already, the port is taken, or SuperLink cannot start.
        MissingExtraError: if Flower is not installed.
    """
    document = read_document(settings.state)
    if document is not None and is_alive(int(document["pid"])):
        raise DeploymentError(
            f"a server runs from {settings.state} already (process {document['pid']}); stop it with "
            "airtune server stop"
        )
    with storage(settings.state):
        settings.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    (settings.state / "draining").unlink(missing_ok=True)
    _check_port(settings)
    if settings.insecure:
        say("INSECURE: no TLS and no keys; whoever reaches this port can join and read")
    else:
        ensure_certificates(settings.tls.folder, _names(settings))
    _Supervisor(settings, say).run()


class _Supervisor:
    """Starts SuperLink, and again where it ends."""

    def __init__(self, settings: ServerSettings, say: Callable[[str], None]) -> None:
        self._settings, self._say = settings, say
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()

    def run(self) -> None:
        """Supervise until told to stop."""
        previous = {kind: signal.signal(kind, self._on_signal)
                    for kind in (signal.SIGTERM, signal.SIGINT)}  # fmt: skip
        pause_s = 1.0
        try:
            while not self._stopping.is_set():
                began = time.monotonic()
                self._live_once()
                pause_s = 1.0 if time.monotonic() - began > _CALM_S else min(
                    2 * pause_s, _LONGEST_PAUSE_S)  # fmt: skip
                self._pause(pause_s)
        finally:
            self._end()
            (self._settings.state / "server.json").unlink(missing_ok=True)
            for kind, handler in previous.items():
                signal.signal(kind, handler)

    def _live_once(self) -> None:
        settings = self._settings
        with (settings.state / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                _command(settings), env=_server_environment(settings), stdout=log,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self._wait_ready(self._process)
        if self._stopping.is_set():
            return
        if not settings.insecure:
            register_devices(settings)
        document = {"pid": os.getpid(), "superlink": self._process.pid,
                    "settings": {**asdict(settings), "state": str(settings.state)}}  # fmt: skip
        write_atomically(settings.state / "server.json", json.dumps(document, indent=1))
        kind = "without TLS" if settings.insecure else "with TLS and device keys"
        self._say(f"ready at {settings.host}:{settings.port}, {kind}")
        self._process.wait()

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + _READY_S
        while time.monotonic() < until and not self._stopping.is_set():
            if process.poll() is not None:
                raise DeploymentError(
                    f"SuperLink ended as it started: {last_line(self._settings.state / 'server.log')}"
                )
            if _listens(self._settings.address):
                return
            time.sleep(0.2)
        if not self._stopping.is_set():
            raise DeploymentError(
                f"SuperLink is not ready after {_READY_S:.0f} s; see "
                f"{self._settings.state / 'server.log'}"
            )

    def _pause(self, pause_s: float) -> None:
        if self._stopping.is_set():
            return
        log = self._settings.state / "server.log"
        self._say(
            f"SuperLink ended by itself ({last_line(log)}); it is started again in {pause_s:.0f} s"
        )
        self._stopping.wait(pause_s)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping.set()
        self._end()

    def _end(self) -> None:
        end_group(self._process)


def stop(state: Path, *, wait_s: float = 20.0) -> int:
    """Stop the server of a state folder; returns its process number.

    Raises:
        ConnectionFailedError: if none runs.
        DeploymentError: if it does not end.
    """
    running(state)
    document = read_document(state) or {}
    pid = int(document["pid"])
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        if not is_alive(pid):
            return pid
        time.sleep(0.1)
    raise DeploymentError(f"the server (process {pid}) did not end within {wait_s:.0f} s")


def drain(state: Path, *, say: Callable[[str], None], poll_s: float = 3.0) -> None:
    """Take no new run, wait for those that run, and stop the server.

    Raises:
        ConnectionFailedError: if none runs.
    """
    settings = running(state)
    (state / "draining").touch()
    link = settings.link()
    while True:
        active = [
            row for row in list_runs(link) if row["status"].startswith(("run", "pend", "start"))
        ]
        if not active:
            break
        say(f"{len(active)} runs go on; the server stops after them")
        time.sleep(poll_s)
    stop(state)


def list_runs(link: Link) -> list[dict[str, Any]]:
    """Return Flower's list of runs, newest first."""
    return list(link.call(["list", link.name])["runs"])


def stop_run(link: Link, run: int) -> None:
    """Stop one run; its checkpoint stands."""
    link.call(["stop", str(run), link.name])


def _command(settings: ServerSettings) -> list[str]:
    command = [
        program("flower-superlink"), "--host", settings.host, "--port", str(settings.port),
        "--database", str((settings.state / "superlink.db").resolve()),
        "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    if settings.insecure:
        return [*command, "--insecure"]
    tls = settings.tls
    return [
        *command, "--ssl-certfile", str(tls.certificate.resolve()), "--ssl-keyfile",
        str(tls.key.resolve()), "--ssl-ca-certfile", str(tls.authority.resolve()),
        "--enable-supernode-auth",
    ]  # fmt: skip


def _server_environment(settings: ServerSettings) -> Mapping[str, str]:
    return environment(
        (settings.state / "flower").resolve(),
        {"AIRTUNE_STATE": str(settings.state.resolve()),
         "AIRTUNE_INSECURE": "1" if settings.insecure else "0", "AIRTUNE_STREAM_PORT": str(settings.stream_port), "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def _names(settings: ServerSettings) -> Sequence[str]:
    own = ["localhost", "127.0.0.1", socket.gethostname()]
    if settings.host not in ("0.0.0.0", "::"):
        own.append(settings.host)
    return list(dict.fromkeys([*own, *settings.names]))


def _check_port(settings: ServerSettings) -> None:
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise DeploymentError(
                f"cannot listen at {settings.host}:{settings.port} "
                f"({(error.strerror or str(error)).lower()}); choose another --port"
            ) from error


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=1.0):
            return True
    except OSError:
        return False


def last_line(path: Path) -> str:
    """Return the last line of a log that says something."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "it said nothing"
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
