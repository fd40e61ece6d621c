"""Faults of real processes on a shaped test bed: killed, cut off, resumed.

Needs root and namespaces; every test starts a server and its devices and takes minutes.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

pytest.importorskip("flwr", reason="Flower is not installed: pip install 'airtune[flower]'")

from testbed.federation import federation  # noqa: E402
from testbed.network import down, set_link, up, why_not  # noqa: E402
from testbed.spec import DeviceSpec, Spec  # noqa: E402

pytestmark = pytest.mark.slow
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
SPEC = Spec(f"chaos{WORKER}", tuple(DeviceSpec(name, 40, 40) for name in ("one", "two")))
SETTINGS = ("train.rounds=3", "data.limit=120", "data.test_limit=20", "method.name=fedavg-lora",
            "deadline_s=150", "threads=1")  # fmt: skip


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    reason = why_not()
    if reason:
        pytest.skip(reason)
    down(SPEC)
    up(SPEC)
    try:
        with federation(SPEC, tmp_path_factory.mktemp("bed"), probe_s=2.0) as made:
            yield made
    finally:
        down(SPEC)


class Going:
    """A run that goes on in a thread, while somebody breaks things."""

    def __init__(self, bed):
        self._bed, self.result, self.error = bed, None, None
        self._old = set(self._folders())
        self._thread = threading.Thread(target=self._go)
        self._thread.start()

    def _go(self):
        try:
            self.result = self._bed.run(str(ROOT / "recipes" / "demo.yaml"), SETTINGS)
        except RuntimeError as error:
            self.error = error

    def _folders(self):
        return (path.parent for path in self._bed.state.rglob("run.json"))

    @property
    def folder(self):
        return next((path for path in self._folders() if path not in self._old), None)

    def rounds(self):
        path = None if self.folder is None else self.folder / "rounds.jsonl"
        return len(path.read_text().splitlines()) if path and path.is_file() else 0

    def await_round(self, number, *, patience_s=300):
        until = time.monotonic() + patience_s
        while self.rounds() < number:
            assert self._thread.is_alive(), f"the run ended early: {self.error or self.result}"
            assert time.monotonic() < until, f"round {number} did not come"
            time.sleep(0.5)

    def end(self, *, patience_s=900):
        self._thread.join(patience_s)
        assert not self._thread.is_alive(), "the run did not end"
        if self.error is not None:
            raise self.error
        return [
            json.loads(line) for line in (self.folder / "rounds.jsonl").read_text().splitlines()
        ]


def kill(pattern, under):
    """Kill -9 what runs under a process and matches; return how many there were."""
    found = subprocess.run(
        ["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 2) for line in found.stdout.splitlines()[1:]]
    below, grown = {str(under)}, True
    while grown:
        more = {pid for pid, parent, _ in rows if parent in below} - below
        below |= more
        grown = bool(more)
    doomed = [int(pid) for pid, _, args in rows if pid in below and pattern in args]
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)
    return len(doomed)


def test_a_worker_that_is_killed_costs_its_round_at_most(bed):
    run = Going(bed)
    run.await_round(1)
    assert kill("airtune.deploy.worker", bed.agents[0].pid)
    rows = run.end()
    assert len(rows) == 3
    assert rows[-1]["counts"]["ok"] >= 1


def test_a_link_that_goes_down_and_up_costs_its_round_at_most(bed):
    run = Going(bed)
    run.await_round(1)
    set_link(SPEC, 1, is_up=False)
    time.sleep(10)
    set_link(SPEC, 1, is_up=True)
    rows = run.end()
    assert len(rows) == 3
    assert all(row["counts"]["ok"] >= 1 for row in rows)


def test_a_superlink_that_is_killed_comes_back_and_the_run_resumes(bed):
    run = Going(bed)
    run.await_round(1)
    assert kill("flower-superlink", bed.server.pid)
    with pytest.raises(RuntimeError):
        run.end()
    done = run.rounds()
    said = bed.resume(run.folder)
    rows = [json.loads(line) for line in (run.folder / "rounds.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert done >= 1
    assert said["result"]
