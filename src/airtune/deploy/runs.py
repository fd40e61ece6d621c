"""The runs of a server: each a process of its own, which this one starts, feeds and ends.

Lines of JSON go both ways. To a run: its order, who is connected, and tasks that a device has given
up. From a run: the port on this machine where it serves its devices, tickets for them, and events
for whoever follows. A run ends when this process does; its checkpoint stands.

    STATE/runs.json            all runs, by number
    STATE/logs/run-N.jsonl     what run N has told
    STATE/logs/run-N.log       what its process has written
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airtune.errors import CheckpointError
from airtune.records import write_atomically

RUNNING, DONE, FAILED, STOPPED = (
    "running", "finished:completed", "finished:failed", "finished:stopped"
)  # fmt: skip
_LONGEST_LINE = 256 << 20
_GRACE_S = 20.0


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

    child: asyncio.subprocess.Process
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
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        for row in self._rows.values():
            if row.status == RUNNING:
                self._rows[row.number] = replace(row, status=FAILED)
        (state / "logs").mkdir(parents=True, exist_ok=True)

    @property
    def rows(self) -> list[RunRow]:
        """All runs, newest first."""
        return sorted(self._rows.values(), key=lambda row: -row.number)

    def port(self, number: int) -> int | None:
        """Return where a run that goes on serves its devices."""
        going = self._going.get(number)
        return None if going is None else going.port

    async def start(self, order: Mapping[str, Any], *, name: str, operator: str) -> int:
        """Start a run; returns its number."""
        number = max(self._rows, default=0) + 1
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with (self._state / "logs" / f"run-{number}.log").open("ab") as log:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "airtune.deploy.runner", stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE, stderr=log, env=environment,
                limit=_LONGEST_LINE, start_new_session=True,
            )  # fmt: skip
        self._rows[number] = RunRow(number, name, operator, RUNNING, _now())
        self._going[number] = _Process(child)
        self._save()
        self._tell(number, {"order": {**order, "run": str(number), "state": str(self._state)}})
        self._tell(number, {"present": self._present()})
        task = asyncio.create_task(self._listen(number))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return number

    async def stop(self, number: int) -> bool:
        """End a run; False where none of this number goes on."""
        going = self._going.get(number)
        if going is None:
            return False
        going.is_stopped = True
        _signal(going.child, signal.SIGTERM)
        try:
            async with asyncio.timeout(_GRACE_S):
                await going.child.wait()
        except TimeoutError:
            _signal(going.child, signal.SIGKILL)
        return True

    async def close(self) -> None:
        """End all runs."""
        await asyncio.gather(*(self.stop(number) for number in list(self._going)))
        await asyncio.gather(*list(self._tasks))

    def tell_present(self) -> None:
        """Tell all runs who is connected now."""
        for number in self._going:
            self._tell(number, {"present": self._present()})

    def tell_failed(self, number: int, token: str, why: str) -> None:
        """Tell a run that a task of it will not be answered."""
        self._tell(number, {"failed": {"token": token, "why": why}})

    async def follow(self, number: int) -> AsyncIterator[bytes]:
        """Yield what a run has told and tells, line by line, and at its end its status."""
        path = self._state / "logs" / f"run-{number}.jsonl"
        path.touch()
        with path.open("rb") as file:
            while True:
                is_going = number in self._going
                for line in file.readlines():
                    yield line
                if not is_going:
                    break
                async with self._changed:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(1.0):
                            await self._changed.wait()
        yield json.dumps({"ended": self._rows[number].status}).encode() + b"\n"

    async def _listen(self, number: int) -> None:
        """Take in what a run says until it ends."""
        going = self._going[number]
        said = going.child.stdout
        with (self._state / "logs" / f"run-{number}.jsonl").open("ab", buffering=0) as told:
            while said is not None and (line := await said.readline()):
                message = json.loads(line)
                if "event" in message:
                    told.write(json.dumps(message["event"]).encode() + b"\n")
                    async with self._changed:
                        self._changed.notify_all()
                elif "ticket" in message:
                    self._hand(int(message["node"]), number, message["ticket"])
                elif "port" in message:
                    going.port = int(message["port"])
        code = await going.child.wait()
        _signal(going.child, signal.SIGKILL)  # whatever it has left behind
        status = STOPPED if going.is_stopped else DONE if code == 0 else FAILED
        self._rows[number] = replace(self._rows[number], status=status, ended=_now())
        del self._going[number]
        self._save()
        async with self._changed:
            self._changed.notify_all()

    def _tell(self, number: int, message: Mapping[str, Any]) -> None:
        pipe = self._going[number].child.stdin
        if pipe is not None and not pipe.is_closing():
            pipe.write(json.dumps(message).encode() + b"\n")

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


def _signal(child: asyncio.subprocess.Process, kind: signal.Signals) -> None:
    """Send a signal to a run and all it has started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, kind)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
