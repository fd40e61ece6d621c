"""Two hundred devices at one server, and what a device takes that only waits.

The server, its front and a run are processes of their own, with TLS and a key for each device. The
devices are light: each has its own connection, fetches its tasks and sends its answers, but one
model in this process trains for all. What is compared are counts, memory and processor seconds,
which other work on the machine changes little.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from airtune.deploy.agent.attend import Attending
from airtune.deploy.agent.device import Device, DeviceSettings
from airtune.deploy.caller import Proof, ServerClient
from airtune.deploy.server.enroll import enroll
from airtune.deploy.server.site import local_link, read_document, running
from airtune.errors import AirtuneError
from airtune.records import read_run
from airtune.wire.channel import RUN_KEY, Way
from airtune.wire.message import Message
from airtune.wire.post import Ticket
from airtune.wire.tasks import fetch_task, send_answer
from benchmarks.figure import Figure, at_least, at_most

DEVICES, ROUNDS, REAL = 200, 3, "real"
"""REAL is a device with a whole agent, which only waits."""
LOOK_S, PATIENCE_S = 15.0, 300.0
_RECIPE = f"""
name: crowd
data: {{source: devices, max_length: 32}}
train: {{rounds: {ROUNDS}, local_steps: 1, per_device_train_batch_size: 1}}
method: {{name: fedavg-lora}}
threads: 1
"""
_AIRTUNE = (sys.executable, "-m", "airtune")
_ROWS = "\n".join(json.dumps({"prompt": f"{n} + 1 =", "completion": f" {n + 1}"}) for n in range(8))


def run() -> Iterator[Figure]:
    """Yield the figures; about two minutes."""
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = Path(place)
        (folder / "rows.jsonl").write_text(_ROWS, encoding="utf-8")
        (folder / "crowd.yaml").write_text(_RECIPE, encoding="utf-8")
        names = [f"light-{number:03d}" for number in range(DEVICES)]
        enroll(folder / "state", dict.fromkeys([*names, REAL]))
        port = stack.enter_context(_server(folder))
        stack.enter_context(_crowd(folder, names, port))
        agent = stack.enter_context(_agent(folder, port))
        _until(lambda: _online(folder) == DEVICES + 1)
        front = _front(folder)
        yield from _waiting(front, agent.pid)
        agent.terminate()
        agent.wait()
        yield from _working(folder, front)
        os.kill(front, 9)
        time.sleep(1.0)
        with suppress(TimeoutError):
            _until(lambda: _online(folder) == DEVICES)
        back = _online(folder)
        yield at_least("crowd.back", back, DEVICES, "connected again after kill -9 of the front")


def _waiting(front: int, agent: int) -> Iterator[Figure]:
    before, began = (_processor_s(front), _processor_s(agent)), time.monotonic()
    time.sleep(LOOK_S)
    passed_s = time.monotonic() - began
    front_share, agent_share = (
        (_processor_s(pid) - spent) / passed_s
        for pid, spent in zip((front, agent), before, strict=True)
    )
    what = f"of a core over {passed_s:.0f} s"
    yield at_most("crowd.front_share", front_share, 0.05, f"{DEVICES} devices wait; {what}")
    yield at_most("crowd.front_mib", _memory_mib(front), 300, f"{DEVICES} devices wait")
    yield at_most("crowd.agent_share", agent_share, 0.005, f"a whole agent waits; {what}")
    yield at_most("crowd.agent_mib", _memory_mib(agent), 300, "a whole agent waits")


def _working(folder: Path, front: int) -> Iterator[Figure]:
    spent_s = _processor_s(front)
    done = subprocess.run(
        [
            *_AIRTUNE,
            "run",
            "crowd.yaml",
            "--server",
            local_link(running(folder / "state")).address,
            "--ca",
            "state/tls/ca.crt",
            "--devices",
            str(DEVICES),
            "--json",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the run failed: {done.stderr[-2000:]}")
    spent_s = _processor_s(front) - spent_s
    record = read_run(Path(json.loads(done.stdout)["folder"]))
    counted = sum(int(row["counts"]["ok"]) for row in record.rounds)
    yield at_least("crowd.counted", counted, DEVICES * ROUNDS, f"updates of {ROUNDS} rounds")
    tasks = DEVICES * (ROUNDS + 2)  # they join first and judge last
    yield Figure(
        "crowd.front_ms",
        1e3 * spent_s / tasks,
        "none",
        True,
        "of a processor, a task and its answer",
    )
    parts = record.rounds[-1]["measured"]
    own_s = float(parts["wall_s"]) - float(parts["tasks_s"]) - float(parts["validation_s"])
    said = ", ".join(f"{name} {float(value):.2f}" for name, value in parts.items())
    yield Figure("crowd.own_s", own_s, "none", True, f"of a round beside tasks and judging: {said}")


class Light:
    """Answers for one device; see the module."""

    def __init__(self, way: Way, pool: ThreadPoolExecutor, answers: Answers) -> None:
        self._way, self._pool, self._answers = way, pool, answers

    def take(self, ticket: Ticket, failed: Callable[[str], None]) -> None:
        """Have a task answered."""
        self._pool.submit(self._do, ticket)

    def prepare(self) -> None:
        """Be as ready as always."""

    def _do(self, ticket: Ticket) -> None:
        way = replace(self._way, metadata=((RUN_KEY, ticket.run),))
        with suppress(AirtuneError):  # its run has ended
            send_answer(way, ticket, self._answers.to(fetch_task(way, ticket)))


class Answers:
    """One device trains for all: its answer is the others', but for whose it is."""

    def __init__(self, rows: Path) -> None:
        self._device = Device(DeviceSettings(data=str(rows), compute="cpu"))
        self._known: dict[tuple[str, int], Message] = {}
        self._lock = threading.Lock()

    def to(self, task: Message) -> Message:
        """Return the answer to a task."""
        asked = json.loads(task.header)
        key = asked["kind"], asked["round"]
        with self._lock:
            if key not in self._known:
                self._known[key] = self._device.handle(task)
        reply = self._known[key]
        own = {name: asked[name] for name in ("device", "name", "ticket") if name in asked}
        return replace(reply, header=json.dumps(json.loads(reply.header) | own).encode())


@contextmanager
def _crowd(folder: Path, names: list[str], port: int) -> Iterator[None]:
    """Have all light devices wait for tasks."""
    leaving, answers = threading.Event(), Answers(folder / "rows.jsonl")
    lines: list[Attending] = []
    pool = ThreadPoolExecutor(8, thread_name_prefix="task")

    def attend(name: str) -> None:
        proof, server = _proof(folder, name), f"127.0.0.1:{port}"
        place = Light(Way(server, proof.credentials()), pool, answers)
        while not leaving.is_set():
            line = Attending(server, proof, name=name, place=place, hear=lambda said: None)
            lines.append(line)
            line.attend(on_welcome=lambda: None)
            leaving.wait(1.0)

    for name in names:
        threading.Thread(target=attend, args=(name,), daemon=True).start()
    try:
        yield
    finally:
        leaving.set()
        for line in lines:
            line.leave()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _server(folder: Path) -> Iterator[int]:
    ports = [_free_port() for _ in range(2)]
    words = ["--state", "state", "--port", str(ports[0]), "--enrol-port", str(ports[1])]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*_AIRTUNE, "server", "start", "--host", "127.0.0.1", *words],
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        _until(lambda: read_document(folder / "state") is not None)
        yield ports[0]
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _agent(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *_AIRTUNE,
                "agent",
                "--server",
                f"127.0.0.1:{port}",
                "--data",
                str(folder / "rows.jsonl"),
            ],
            cwd=_proof(folder, REAL).key.parent,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _proof(folder: Path, name: str) -> Proof:
    home = folder / "state" / "bundles" / name
    return Proof(home / "ca.crt", home / "device.key", home / "device.crt")


def _front(folder: Path) -> int:
    return int((read_document(folder / "state") or {})["front"])


def _online(folder: Path) -> int:
    try:
        link: ServerClient = local_link(running(folder / "state"))
        said: Mapping[str, Any] = link.call("List")
    except AirtuneError:  # it starts anew
        return 0
    return sum(row["status"] == "online" for row in said["devices"])


def _until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError(f"did not come within {PATIENCE_S:.0f} s")
        time.sleep(0.5)


def _processor_s(pid: int) -> float:
    """Return the processor seconds that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mib(pid: int) -> float:
    """Return the memory of a process, pages that it shares by their part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
