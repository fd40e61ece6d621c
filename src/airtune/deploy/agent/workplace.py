"""Where a device's tasks are done: a worker process that is started when there is work."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from airtune.deploy.agent.settings import AgentSettings
from airtune.deploy.agent.worker import WorkerSettings
from airtune.deploy.memory import close_pipes, start_capped
from airtune.errors import AirtuneError
from airtune.wire.post import Ticket

START_S = 600.0
"""How long a worker may take to start: a slow card takes minutes to read torch."""
IDLE_S = 900.0
"""A worker that had no task for this long is ended; torch alone takes 200 MB."""
_REMEMBERED = 256
_Task = tuple[Ticket, Callable[[str], None]] | None
"""A ticket and who is told that it cannot be done; None = only have a worker ready."""


class Workplace:
    """One worker at a time, and the tickets that wait for it."""

    def __init__(
        self,
        settings: AgentSettings,
        folder: Path,
        *,
        say: Callable[[str], None],
        idle_s: float = IDLE_S,
    ) -> None:
        """Start no worker yet.

        Args:
            settings: the agent's.
            folder: this process's own, for the worker's settings.
            say: told what happens, a sentence each.
            idle_s: how long a worker without a task is kept.
        """
        self._settings, self._say, self._idle_s = settings, say, idle_s
        self._path = folder / "worker.json"
        self._tickets: queue.Queue[_Task] = queue.Queue()
        self._seen: deque[str] = deque(maxlen=_REMEMBERED)
        self._worker: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        threading.Thread(target=self._work, name="tasks", daemon=True).start()

    def take(self, ticket: Ticket, failed: Callable[[str], None]) -> None:
        """Have a task done, after those that came before; one that comes again is the same."""
        if ticket.token not in self._seen:
            self._seen.append(ticket.token)
            self._tickets.put((ticket, failed))

    def prepare(self) -> None:
        """Start the worker where none runs: a task will come soon."""
        if self._tickets.empty():
            self._tickets.put(None)

    def end(self) -> None:
        """End the worker, whatever it does, and what waits for it: nothing is begun any more."""
        with suppress(queue.Empty):
            while True:
                if task := self._tickets.get_nowait():
                    task[1]("the agent was ended, or its hours were over, before this was begun")
        self._end_worker()

    def _end_worker(self) -> None:
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.terminate()
        try:
            worker.wait(5.0)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        close_pipes(worker)

    def _work(self) -> None:
        while True:
            try:
                task = self._tickets.get(timeout=self._idle_s)
            except queue.Empty:
                self._end_worker()
                continue
            if task is None:
                with suppress(AirtuneError):  # a task will be told of it
                    self._ready()
            elif why := self._done(task[0]):
                task[1](why)

    def _done(self, ticket: Ticket) -> str:
        """Have the worker do a task; return why it could not, or ""."""
        try:
            worker = self._ready()
        except AirtuneError as error:
            self._say(str(error))
            return str(error)
        try:
            if worker.stdin is not None and worker.stdout is not None:
                worker.stdin.write(ticket.to_json().encode() + b"\n")
                worker.stdin.flush()
                line = worker.stdout.readline()
                if line:
                    return line.decode("utf-8", "replace").strip()
        except (OSError, ValueError):
            pass  # it ended, or was ended, while it was told
        code = worker.wait()
        self._say(f"the worker ended with code {code}")
        return "the worker ended while it worked on this; the agent's log says why (memory, most often)"

    def _ready(self) -> subprocess.Popen[bytes]:
        """Return the worker, started where none runs.

        Raises:
            DeploymentError: if it cannot start.
        """
        with self._lock:
            if self._worker is not None and self._worker.poll() is None:
                return self._worker
            if self._worker is not None:
                close_pipes(self._worker)
                self._worker = None
            settings = self._settings
            proof = settings.proof
            WorkerSettings(
                server=settings.server,
                data=settings.data,
                name=settings.name,
                key=None if proof is None else str(proof.key),
                certificate=None if proof is None else str(proof.certificate),
                authority=None if proof is None else str(proof.authority),
                model=settings.model,
                compute=settings.compute,
                memory_bytes=settings.memory_bytes,
                reserve_bytes=settings.reserve_bytes,
                probe=dict(settings.probe),
                cache=None if settings.cache is None else str(settings.cache),
            ).save(self._path)
            command = [sys.executable, "-m", "airtune.deploy.agent.worker", str(self._path)]
            self._worker = start_capped(command, cap_bytes=settings.memory_bytes, timeout_s=START_S)
            self._say("the worker is ready")
            return self._worker
