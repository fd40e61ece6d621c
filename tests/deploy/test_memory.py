"""A cap is kept: a job over it fails with words, a worker under the floor is not started."""

import subprocess
import sys
import time
from unittest.mock import Mock

import pytest
import torch

from airtune.deploy.agent.pace import Pacer
from airtune.deploy.agent.worker import do_task
from airtune.deploy.memory import (
    capped,
    check_cap,
    floor_bytes,
    is_out_of_memory,
    lean_environment,
    start_capped,
)
from airtune.errors import DeploymentError
from airtune.units import MIB
from airtune.wire.channel import Way
from airtune.wire.post import Ticket

WORKER = """
import sys, torch
from airtune.deploy.memory import is_out_of_memory
print("ready", flush=True)
for line in sys.stdin:
    try:
        torch.ones(int(line), dtype=torch.uint8)
        print("ok", flush=True)
    except (MemoryError, RuntimeError) as error:
        print("out of memory" if is_out_of_memory(error) else repr(error), flush=True)
"""


def ask(worker, size):
    worker.stdin.write(b"%d\n" % size)
    worker.stdin.flush()
    return worker.stdout.readline().strip()


@pytest.fixture
def small_floor(monkeypatch):
    """A floor of nothing, where a test brings a worker of its own that imports less."""
    monkeypatch.setattr("airtune.deploy.memory.floor_bytes", lambda: 0)


def test_a_job_over_the_cap_fails_and_the_worker_lives(small_floor):
    cap_bytes = 1500 * MIB  # above what any build of torch takes
    with start_capped([sys.executable, "-c", WORKER], cap_bytes=cap_bytes) as worker:
        assert ask(worker, 10 * MIB) == b"ok"
        assert ask(worker, cap_bytes) == b"out of memory"
        assert ask(worker, 10 * MIB) == b"ok"
        worker.stdin.close()


def test_a_start_that_hangs_is_ended(small_floor):
    start = time.monotonic()
    with pytest.raises(DeploymentError, match=r"said nothing for 0\.3 s"):
        start_capped(["sleep", "60"], cap_bytes=50 * MIB, timeout_s=0.3)
    assert time.monotonic() - start < 10


def test_a_start_that_dies_is_told(small_floor):
    with pytest.raises(DeploymentError, match="died with code"):
        start_capped(["false"], cap_bytes=50 * MIB)


def test_a_cap_under_the_measured_floor_is_refused_and_one_above_it_holds_a_worker():
    floor = floor_bytes()
    assert 150 * MIB < floor < 2000 * MIB
    with pytest.raises(DeploymentError, match="is under the"):
        check_cap(floor - 1)
    code = "import torch, transformers, peft, airtune.work.train"
    done = subprocess.run(
        capped([sys.executable, "-c", code], floor), check=False, env=lean_environment()
    )
    assert done.returncode == 0


def test_what_is_no_want_of_memory_is_not_taken_for_one():
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
    )


def test_a_worker_that_cannot_begin_says_why(small_floor):
    script = (
        "from airtune.deploy.agent.worker import serve; from airtune.errors import DeploymentError\n"
        "def prepared(): raise DeploymentError('nothing is left to train with')\n"
        "serve(prepared)"
    )
    with pytest.raises(DeploymentError, match=r"^nothing is left to train with$"):
        start_capped([sys.executable, "-c", script])


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_a_worker_without_memory_for_a_task_lives_and_says_so(monkeypatch, error):
    def fetch_task(way, ticket):
        raise error

    monkeypatch.setattr("airtune.wire.tasks.fetch_task", fetch_task)
    answer = do_task(Mock(), Way("127.0.0.1:1", None), Ticket("token").to_json(), Pacer())
    assert answer.startswith("out of memory while a task came")
