"""The server under supervision: its front, its keys, its runs and its state folder.

    STATE/tls/          authority and server certificate
    STATE/devices.json  who may connect: devices and operators
    STATE/probes/       what devices have measured of themselves
    STATE/runs/         records, checkpoints and reports of runs
    STATE/runs.json     the list of runs; their logs are in STATE/logs/
    STATE/audit.jsonl   what operators asked for
    STATE/server.json   process and address of the server that is ready
    STATE/server.log    who came and went
    STATE/lock          held by the server that runs

The front is started again where it ends by itself. A run that it took along goes on from its own
checkpoint: airtune run --resume.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from airtune.deploy.keys import days_left
from airtune.deploy.server.authority import ensure_certificates
from airtune.deploy.server.site import DRAINING, READY, ServerSettings, holder_of, holding, is_held
from airtune.errors import ConnectionFailedError, DeploymentError
from airtune.records import write_atomically

_READY_S = 60.0
_CALM_S = 60.0
"""A front that lived this long is started again at once."""
_LONGEST_PAUSE_S = 30.0


def start(settings: ServerSettings, *, say: Callable[[str], None]) -> None:
    """Run the server until it is told to stop; in the foreground, as service managers like it.

    Args:
        settings: where and how.
        say: told what happens, a sentence each.

    Raises:
        DeploymentError: if it is running already, a port is taken, the clock is wrong, or it cannot
            start.
    """
    with holding(settings.state):
        settings.document.unlink(missing_ok=True)
        (settings.state / DRAINING).unlink(missing_ok=True)
        _check_port(settings.host, settings.port, "--port")
        if not settings.insecure:
            _check_port(settings.host, settings.enrol_port, "--enrol-port")
        if settings.insecure:
            say("INSECURE: no TLS and no keys; whoever reaches this port can join, read and submit")
        else:
            files = ensure_certificates(settings.tls.folder, _names(settings))
            for path in (files.authority, files.certificate):
                days_left(path)  # refuses one that does not hold at this machine's time
        _Supervisor(settings, say).run()


class _Supervisor:
    """Starts the front, and again where it ends."""

    def __init__(self, settings: ServerSettings, say: Callable[[str], None]) -> None:
        self._settings, self._say = settings, say
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()

    def run(self) -> None:
        """Supervise until told to stop."""
        previous = {
            kind: signal.signal(kind, self._on_signal) for kind in (signal.SIGTERM, signal.SIGINT)
        }
        pause_s = 1.0
        try:
            while not self._stopping.is_set():
                began = time.monotonic()
                self._live_once()
                pause_s = (
                    1.0
                    if time.monotonic() - began > _CALM_S
                    else min(2 * pause_s, _LONGEST_PAUSE_S)
                )
                self._pause(pause_s)
        finally:
            self._settings.document.unlink(missing_ok=True)
            end_group(self._process)
            for kind, handler in previous.items():
                signal.signal(kind, handler)

    def _live_once(self) -> None:
        settings = self._settings
        said = {**asdict(settings), "state": str(settings.state.resolve())}
        with (settings.state / "front.log").open("wb") as log:
            # its standard input stays open for as long as this process lives, and it lives no longer
            self._process = subprocess.Popen(
                [sys.executable, "-m", "airtune.deploy.server.front", json.dumps(said)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "GRPC_VERBOSITY": "NONE", "PYTHONUNBUFFERED": "1"},
            )
        self._wait_ready(self._process)
        if self._stopping.is_set():
            return
        document = {"pid": os.getpid(), "front": self._process.pid, "settings": said}
        write_atomically(settings.document, json.dumps(document, indent=1))
        kind = "without TLS" if settings.insecure else "with TLS and keys"
        self._say(f"ready at {settings.host}:{settings.port}, {kind}")
        self._process.wait()
        settings.document.unlink(missing_ok=True)

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        log, output = self._settings.state / "front.log", process.stdout
        if output is None:
            return
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            until = time.monotonic() + _READY_S
            while time.monotonic() < until and not self._stopping.is_set():
                if selector.select(0.2):
                    if output.readline().strip() == READY.encode():
                        return
                    raise DeploymentError(f"the server ended as it started: {last_line(log)}")
        if not self._stopping.is_set():
            raise DeploymentError(f"the server is not ready after {_READY_S:.0f} s; see {log}")

    def _pause(self, pause_s: float) -> None:
        if self._stopping.is_set():
            return
        said = last_line(self._settings.state / "front.log")
        self._say(f"the server ended by itself ({said}); it is started again in {pause_s:.0f} s")
        self._stopping.wait(pause_s)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)


def stop(state: Path, *, wait_s: float = 40.0) -> int:
    """Stop the server of a state folder; returns its process number.

    Raises:
        ConnectionFailedError: if none runs, nor starts.
        DeploymentError: if it does not end.
    """
    pid = holder_of(state)
    if pid is None:
        raise ConnectionFailedError(f"no server runs from {state}")
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        if not is_held(state):
            return pid
        time.sleep(0.1)
    raise DeploymentError(
        f"the server (process {pid}) did not end within {wait_s:.0f} s; look at airtune server logs, or "
        f"end it with kill -9 {pid}: finished rounds are saved"
    )


def _names(settings: ServerSettings) -> Sequence[str]:
    own = ["localhost", "127.0.0.1", socket.gethostname()]
    if settings.host not in ("0.0.0.0", "::"):
        own.append(settings.host)
    return list(dict.fromkeys([*own, *settings.names]))


def _check_port(host: str, port: int, option: str) -> None:
    why = why_not_free(host, port)
    if why:
        raise DeploymentError(f"cannot listen at {host}:{port} ({why}); choose another {option}")


def why_not_free(host: str, port: int) -> str:
    """Return why a port cannot be listened at, "" if it can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            return (getattr(error, "strerror", None) or str(error)).lower()
    return ""


def last_line(path: Path) -> str:
    """Return the last line of a log that says something."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "it said nothing"
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def end_group(process: subprocess.Popen[bytes] | None, *, grace_s: float = 10.0) -> None:
    """End a process that leads a group, and all it started; kindly first."""
    if process is None:
        return
    for kind, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, kind)
        except ProcessLookupError:
            break
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            continue
    process.poll()
