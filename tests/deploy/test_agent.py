"""A device's tasks are done one after the other, each once, and what fails is told."""

import queue
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("grpc", reason="grpcio is not installed: pip install 'airtune[federation]'")
from airtune.deploy.agent import workplace
from airtune.deploy.agent.settings import AgentSettings
from airtune.deploy.agent.workplace import Workplace
from airtune.errors import DeploymentError
from airtune.wire.post import Ticket

LONG_S = 60.0
# a worker that answers every ticket but the one on which it ends, and the one on which it hangs
WORKER = """
import json, sys, time
print("ready", flush=True)
for line in sys.stdin:
    token = json.loads(line)["token"]
    if token == "deadly":
        sys.exit(9)
    if token == "endless":
        time.sleep(600)
    print("it does not fit" if token.startswith("large") else "", flush=True)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    started = workplace.start_capped

    def start(command: list[str], **limits: object) -> object:
        return started([command[0], str(script)], cap_bytes=None, timeout_s=LONG_S)

    monkeypatch.setattr(workplace, "start_capped", start)
    return Workplace(AgentSettings("edge:1", "recipe"), tmp_path, say=lambda sentence: None)


def test_what_fails_is_told_and_a_worker_that_ends_is_started_again(place: Workplace) -> None:
    told: queue.Queue[str] = queue.Queue()
    for token in ("fine", "large 1", "fine", "deadly", "large 1", "large 2"):
        place.take(Ticket(token), told.put)  # those that come twice are done once
    said = [told.get(timeout=LONG_S) for _ in range(3)]
    assert said[0] == said[2] == "it does not fit"
    assert "the worker ended while it worked on this" in said[1]
    place.end()
    assert told.empty()


def test_what_waits_when_the_agent_ends_is_told_and_starts_no_other_worker(
    place: Workplace,
) -> None:
    told: queue.Queue[str] = queue.Queue()
    ready: queue.Queue[str] = queue.Queue()
    place._say = ready.put
    place.take(Ticket("endless"), told.put)
    place.take(Ticket("large"), told.put)
    assert ready.get(timeout=LONG_S) == "the worker is ready"
    place.end()
    assert "before this was begun" in told.get(timeout=LONG_S)
    assert "the worker ended while it worked" in told.get(timeout=LONG_S)
    assert ready.get(timeout=LONG_S) == "the worker ended with code -15"
    assert place._tickets.empty()
    assert ready.empty()


def test_a_worker_is_there_before_a_task_that_will_come_soon(place: Workplace) -> None:
    ready: queue.Queue[str] = queue.Queue()
    place._say = ready.put
    for _ in range(9):
        place.prepare()
    assert ready.get(timeout=LONG_S) == "the worker is ready"
    told: queue.Queue[str] = queue.Queue()
    place.take(Ticket("large"), told.put)
    assert told.get(timeout=LONG_S) == "it does not fit"
    assert ready.empty()  # the same worker
    place.end()


def test_a_worker_that_cannot_start_is_told(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*command: object, **limits: object) -> None:
        raise DeploymentError("under the floor")

    monkeypatch.setattr(workplace, "start_capped", refuse)
    told: queue.Queue[str] = queue.Queue()
    place.take(Ticket("any"), told.put)
    assert told.get(timeout=LONG_S) == "under the floor"


def test_a_worker_leaves_ctrl_c_to_its_agent_and_ends_with_it_in_the_middle_of_a_task() -> None:
    script = (
        "import time; from airtune.deploy.agent.worker import serve; "
        "serve(lambda: lambda line: time.sleep(600) if 'long' in line else line)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
        worker.send_signal(signal.SIGINT)
        worker.stdin.write(b"short\nlong\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == b"short\n"
        _, said = worker.communicate(timeout=LONG_S)  # closes its input
    assert worker.returncode == 0
    assert said == b""
