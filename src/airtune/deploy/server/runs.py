"""The runs of a server: each a process of its own, which this one starts, feeds and ends.

A run that shares devices with an earlier one waits in the queue until that has ended (`queue` has
the rules). Lines of JSON go both ways. To a run: its order, which of its devices are connected, and
tasks that a device has given up. From a run: the port on this machine where it serves its devices,
tickets for them, and events for whoever follows. A run ends when this process does; its checkpoint
stands. A queued one waits for the next start of the server.

    STATE/runs.json            all runs, by number
    STATE/queue/run-N.json     the order of run N, for as long as it is queued
    STATE/logs/run-N.jsonl     what run N has told
    STATE/logs/run-N.log       what its process has written
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airtune.deploy import ROSTER
from airtune.deploy.labels import Labels
from airtune.deploy.memory import close_pipes
from airtune.deploy.server.queue import (
    DONE,
    FAILED,
    QUEUED,
    RUNNING,
    STOPPED,
    RunRow,
    blockers,
    holder,
)
from airtune.deploy.server.site import DRAINING
from airtune.errors import CheckpointError, StorageError
from airtune.records import storage, write_atomically

RUNNER = ("-m", "airtune.deploy.federation.runner")
_GRACE_S, _LOOK_S = 20.0, 1.0
log = logging.getLogger("airtune.server")


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
    """Starts runs when their devices are free, listens to them, and remembers them."""

    def __init__(
        self,
        state: Path,
        *,
        present: Callable[[], Mapping[str, int]],
        labels: Callable[[], Mapping[str, Labels]],
        hand: Callable[[int, int, Mapping[str, Any]], None],
        wake: Callable[[Iterable[str]], None],
    ) -> None:
        """Read what ran before; runs that a server took along have failed.

        Args:
            state: the server's folder.
            present: returns the node of every device that is connected.
            labels: returns the labels of every device that may call.
            hand: gives a node, for a run, a ticket.
            wake: tells devices, by name, that a task of theirs will come soon.
        """
        self._state, self._present, self._hand = state, present, hand
        self._labels, self._wake = labels, wake
        self._rows = {row.number: row for row in _read(state / "runs.json")}
        self._going: dict[int, _Process] = {}
        self._changed = threading.Condition()
        self._is_closing = False
        for row in self._rows.values():
            is_lost = row.status == QUEUED and not self._order_path(row.number).is_file()
            if row.status == RUNNING or is_lost:
                self._rows[row.number] = replace(row, status=FAILED)
        (state / "logs").mkdir(parents=True, exist_ok=True)

    @property
    def rows(self) -> list[RunRow]:
        """All runs, newest first."""
        with self._changed:
            return sorted(self._rows.values(), key=lambda row: -row.number)

    def waits_for(self, row: RunRow) -> list[int]:
        """Return the numbers of the runs that a queued run waits for."""
        return [] if row.status != QUEUED else blockers(row, self.rows, self._known())

    def port(self, number: int) -> int | None:
        """Return where a run that goes on serves its devices."""
        going = self._going.get(number)
        return None if going is None else going.port

    def submit(self, order: Mapping[str, Any], *, name: str, operator: str, where: Labels) -> int:
        """Queue a run, and start it if its devices are free; returns its number.

        Raises:
            StorageError: if it cannot be written down; there is no such run then.
        """
        with self._changed:
            number = max(self._rows, default=0) + 1
            row = RunRow(
                number,
                name,
                operator,
                QUEUED,
                _now(),
                where=dict(where),
                devices=_devices_of(self._state, str(order.get("resume") or "")),
                folder=Path(str(order.get("resume") or "")).name,
            )
            write_atomically(self._order_path(number), json.dumps(order))
            self._save({**self._rows, number: row})
            self._rows[number] = row
        self.start_free()
        row = self._rows[number]
        if waits := self.waits_for(row):
            said = ", ".join(map(str, waits))
            self._note(number, {"stage": f"queued: waits for the devices of run {said}"})
        return number

    def start_free(self) -> None:
        """Start every queued run whose devices are free."""
        with self._changed:
            if self._is_closing or (self._state / DRAINING).exists():
                return
            for row in reversed(self.rows):
                if row.status == QUEUED and not self.waits_for(row):
                    try:
                        self._start(row)
                    except (OSError, ValueError) as error:
                        log.error("run %d cannot be started: %s", row.number, error)
                        self._settle(replace(row, status=FAILED, ended=_now()))

    def _start(self, row: RunRow) -> None:
        number, path = row.number, self._order_path(row.number)
        order = json.loads(path.read_text(encoding="utf-8"))
        with (self._state / "logs" / f"run-{number}.log").open("ab") as written:
            child = subprocess.Popen(
                [sys.executable, *RUNNER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=written,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        listener = threading.Thread(target=self._listen, args=(number,), name=f"run {number}")
        self._going[number] = _Process(child, listener)
        self._settle(replace(row, status=RUNNING))
        self._note(number, {"stage": "starting"})
        with suppress(OSError):  # it is overwritten by the next of this number
            path.unlink()
        self._tell(
            number,
            {
                "order": {
                    **order,
                    "run": str(number),
                    "state": str(self._state),
                    "asked_at": time.time(),
                }
            },
        )
        share = self._share_of(number)
        self._tell(number, {"present": share})
        listener.start()
        self._wake(share)  # they read torch while the run's process does

    def _settle(self, row: RunRow) -> None:
        """Remember what has become known of a run, also where the disk is full."""
        with self._changed:
            before, self._rows[row.number] = self._rows[row.number], row
            if row.status != before.status:
                log.info("run %d (%s) of %s: %s", row.number, row.name, row.operator, row.status)
            try:
                self._save(self._rows)
            except StorageError as error:
                log.error("the list of runs is not written: %s", error)
            self._changed.notify_all()

    def _known(self) -> dict[str, Labels]:
        """Return the labels of every device that may call or is connected."""
        return {name: {} for name in self._present()} | dict(self._labels())

    def _share_of(self, number: int) -> dict[str, int]:
        """Return the node of every connected device that is a run's."""
        known, rows = self._known(), self.rows
        return {
            name: node
            for name, node in self._present().items()
            if holder(name, known[name], rows) == number
        }

    def _order_path(self, number: int) -> Path:
        return self._state / "queue" / f"run-{number}.json"

    def stop(self, number: int) -> RunRow | None:
        """End a run, or take it off the queue; returns its row, None where none goes on or waits."""
        with self._changed:
            row, going = self._rows.get(number), self._going.get(number)
            if row is not None and row.status == QUEUED:
                self._settle(replace(row, status=STOPPED, ended=_now()))
                self._order_path(number).unlink(missing_ok=True)
                return row
        if going is None:
            return None
        going.is_stopped = True
        _signal(going.child, signal.SIGTERM)
        try:
            going.child.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            _signal(going.child, signal.SIGKILL)
        going.listener.join(_GRACE_S)
        return self._rows[number]

    def close(self) -> None:
        """End all runs; those that are queued wait for the next start."""
        self._is_closing = True
        for number in list(self._going):
            self.stop(number)

    def evict(self, number: int, name: str) -> bool:
        """Take a device out of a run that runs; False where it is not in one of this number."""
        with self._changed:
            row = self._rows.get(number)
            if (
                number not in self._going
                or row is None
                or not row.holds(name, self._known().get(name, {}))
            ):
                return False
            self._settle(replace(row, evicted=(*row.evicted, name)))
        self.tell_present()
        return True

    def tell_present(self) -> None:
        """Tell all runs which of their devices are connected now, and start those that can."""
        for number in list(self._going):
            self._tell(number, {"present": self._share_of(number)})
        self.start_free()

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
        with storage(path):
            path.touch()
        with path.open("rb") as file:
            while is_wanted():
                is_over = self._rows[number].status not in (QUEUED, RUNNING)
                yield from file.readlines()
                if is_over:
                    yield json.dumps({"ended": self._rows[number].status}).encode() + b"\n"
                    return
                with self._changed:
                    self._changed.wait(_LOOK_S)

    def _listen(self, number: int) -> None:
        """Take in what a run says until it ends."""
        going = self._going[number]
        for line in going.child.stdout or ():
            message = json.loads(line)
            if "event" in message:
                self._hear(number, message["event"])
            elif "ticket" in message:
                self._hand(int(message["node"]), number, message["ticket"])
            elif "port" in message:
                going.port = int(message["port"])
        code = going.child.wait()
        _signal(going.child, signal.SIGKILL)  # whatever it has left behind
        close_pipes(going.child)
        status = STOPPED if going.is_stopped else DONE if code == 0 else FAILED
        with self._changed:
            del self._going[number]
            self._settle(replace(self._rows[number], status=status, ended=_now()))
        if not self._is_closing:
            self.tell_present()

    def _hear(self, number: int, event: Mapping[str, Any]) -> None:
        """Keep an event for whoever follows; the devices of a run are settled by what it tells."""
        self._note(number, event)
        with self._changed:
            if "folder" in event:
                folder = Path(str(event["folder"])).name
                self._settle(replace(self._rows[number], folder=folder))
            if "devices" in event:
                self._settle(replace(self._rows[number], devices=tuple(event["devices"])))
        if "devices" in event:
            self.tell_present()

    def _note(self, number: int, event: Mapping[str, Any]) -> None:
        with self._changed:
            try:
                with (self._state / "logs" / f"run-{number}.jsonl").open("ab") as told:
                    told.write(json.dumps(event).encode() + b"\n")
            except OSError as error:
                log.error("what run %d tells is not kept (%s): %s", number, error, event)
            self._changed.notify_all()

    def _tell(self, number: int, message: Mapping[str, Any]) -> None:
        going = self._going.get(number)
        if going is None or going.child.stdin is None:
            return
        with going.lock, suppress(OSError, ValueError):  # it has ended, or ends at this moment
            going.child.stdin.write(json.dumps(message).encode() + b"\n")
            going.child.stdin.flush()

    def _save(self, rows: Mapping[int, RunRow]) -> None:
        said = [asdict(row) for row in rows.values()]
        write_atomically(self._state / "runs.json", json.dumps(said, indent=1))


def _read(path: Path) -> list[RunRow]:
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [
            RunRow(**{**row, "devices": _names(row.get("devices")), "evicted": ()}) for row in rows
        ]
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore or remove it") from error


def _names(value: list[str] | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(value)


def _devices_of(state: Path, folder: str) -> tuple[str, ...] | None:
    """Return the devices of a run that is to go on, None where it is new or cannot be read."""
    if not folder:
        return None
    try:
        found = (state / "runs" / folder / ROSTER).read_text(encoding="utf-8")
        return tuple(json.loads(found)["names"])
    except (OSError, ValueError, KeyError):
        return None  # the run itself says what is wrong


def _signal(child: subprocess.Popen[bytes], kind: signal.Signals) -> None:
    """Send a signal to a run and all it has started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, kind)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
