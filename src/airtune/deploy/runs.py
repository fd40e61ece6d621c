"""The runs of a server: each a process of its own, which this one starts, feeds and ends.

Lines of JSON go both ways. To a run: its order, who is connected, and tasks that a device has given
up. From a run: the port on this machine where it serves its devices, tickets for them, and events
for whoever follows. A run ends when this process does; its checkpoint stands.

    STATE/runs.json            all runs, by number
    STATE/logs/run-N.jsonl     what run N has told
    STATE/logs/run-N.log       what its process has written
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airtune.deploy.memory import close_pipes
from airtune.errors import CheckpointError
from airtune.records import write_atomically

RUNNING, DONE, FAILED, STOPPED = (
    "running", "finished:completed", "finished:failed", "finished:stopped"
)  # fmt: skip
_GRACE_S, _LOOK_S = 20.0, 1.0


@dataclass(frozen=True, slots=True)
class RunRow:
    """What is known of a run."""

    number: int
    name: str
    operator: str
    status: str
    began: str
    ended: str = ""


@dataclass(slots=True)
class _Process:
    """A run that goes on."""

    child: subprocess.Popen[bytes]
    listener: threading.Thread
    lock: threading.Lock = field(default_factory=threading.Lock)
    port: int | None = None
    """Where it serves its devices, on this machine; None = not yet."""
    is_stopped: bool = False


class Runs:
    """Starts runs, listens to them, and remembers them."""

    def __init__(
        self, state: Path, *, present: Callable[[], Mapping[str, int]],
        hand: Callable[[int, int, Mapping[str, Any]], None],
    ) -> None:  # fmt: skip
        """Read what ran before; runs that a server took along have failed.

        Args:
            state: the server's folder.
            present: returns the node of every device that is connected.
            hand: gives a node, for a run, a ticket.
        """
        self._state, self._present, self._hand = state, present, hand
        self._rows = {row.number: row for row in _read(state / "runs.json")}
        self._going: dict[int, _Process] = {}
        self._changed = threading.Condition()
        for row in self._rows.values():
            if row.status == RUNNING:
                self._rows[row.number] = replace(row, status=FAILED)
        (state / "logs").mkdir(parents=True, exist_ok=True)

    @property
    def rows(self) -> list[RunRow]:
        """All runs, newest first."""
        with self._changed:
            return sorted(self._rows.values(), key=lambda row: -row.number)

    def port(self, number: int) -> int | None:
        """Return where a run that goes on serves its devices."""
        going = self._going.get(number)
        return None if going is None else going.port

    def start(self, order: Mapping[str, Any], *, name: str, operator: str) -> int:
        """Start a run; returns its number."""
        with self._changed:
            number = max(self._rows, default=0) + 1
            self._rows[number] = RunRow(number, name, operator, RUNNING, _now())
        with (self._state / "logs" / f"run-{number}.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "airtune.deploy.runner"], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        listener = threading.Thread(target=self._listen, args=(number,), name=f"run {number}")
        with self._changed:
            self._going[number] = _Process(child, listener)
            self._save()
        self._tell(number, {"order": {**order, "run": str(number), "state": str(self._state)}})
        self._tell(number, {"present": self._present()})
        listener.start()
        return number

    def stop(self, number: int) -> bool:
        """End a run; False where none of this number goes on."""
        going = self._going.get(number)
        if going is None:
            return False
        going.is_stopped = True
        _signal(going.child, signal.SIGTERM)
        try:
            going.child.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            _signal(going.child, signal.SIGKILL)
        going.listener.join(_GRACE_S)
        return True

    def close(self) -> None:
        """End all runs."""
        for number in list(self._going):
            self.stop(number)

    def tell_present(self) -> None:
        """Tell all runs who is connected now."""
        for number in list(self._going):
            self._tell(number, {"present": self._present()})

    def tell_failed(self, number: int, token: str, why: str) -> None:
        """Tell a run that a task of it will not be answered."""
        self._tell(number, {"failed": {"token": token, "why": why}})

    def follow(self, number: int, is_wanted: Callable[[], bool]) -> Iterator[bytes]:
        """Yield what a run has told and tells, line by line, and at its end its status.

        Args:
            number: of the run.
            is_wanted: asked again and again whether anybody still follows.
        """
        path = self._state / "logs" / f"run-{number}.jsonl"
        path.touch()
        with path.open("rb") as file:
            while is_wanted():
                is_going = number in self._going
                yield from file.readlines()
                if not is_going:
                    yield json.dumps({"ended": self._rows[number].status}).encode() + b"\n"
                    return
                with self._changed:
                    self._changed.wait(_LOOK_S)

    def _listen(self, number: int) -> None:
        """Take in what a run says until it ends."""
        going = self._going[number]
        with (self._state / "logs" / f"run-{number}.jsonl").open("ab", buffering=0) as told:
            for line in going.child.stdout or ():
                message = json.loads(line)
                if "event" in message:
                    told.write(json.dumps(message["event"]).encode() + b"\n")
                    with self._changed:
                        self._changed.notify_all()
                elif "ticket" in message:
                    self._hand(int(message["node"]), number, message["ticket"])
                elif "port" in message:
                    going.port = int(message["port"])
        code = going.child.wait()
        _signal(going.child, signal.SIGKILL)  # whatever it has left behind
        close_pipes(going.child)
        status = STOPPED if going.is_stopped else DONE if code == 0 else FAILED
        with self._changed:
            self._rows[number] = replace(self._rows[number], status=status, ended=_now())
            del self._going[number]
            self._save()
            self._changed.notify_all()

    def _tell(self, number: int, message: Mapping[str, Any]) -> None:
        going = self._going.get(number)
        if going is None or going.child.stdin is None:
            return
        with going.lock, suppress(OSError, ValueError):  # it has ended, or ends at this moment
            going.child.stdin.write(json.dumps(message).encode() + b"\n")
            going.child.stdin.flush()

    def _save(self) -> None:
        rows = [asdict(row) for row in self._rows.values()]
        write_atomically(self._state / "runs.json", json.dumps(rows, indent=1))


def _read(path: Path) -> list[RunRow]:
    if not path.is_file():
        return []
    try:
        return [RunRow(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore or remove it") from error


def _signal(child: subprocess.Popen[bytes], kind: signal.Signals) -> None:
    """Send a signal to a run and all it has started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, kind)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
