"""Faults of real processes on a shaped test bed: killed, cut off, resumed.

Needs root and namespaces; every test starts a server and its devices and takes minutes.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

pytest.importorskip("grpc", reason="grpcio is not installed: pip install 'airtune[federation]'")

from testbed.federation import federation  # noqa: E402
from testbed.network import (  # noqa: E402
    CGROUP,
    device_space,
    down,
    is_sending,
    set_link,
    set_rate,
    set_speed,
    up,
    why_not,
)
from testbed.spec import DeviceSpec, Spec  # noqa: E402

pytestmark = pytest.mark.slow
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
SPEC = Spec(f"chaos{WORKER}", tuple(DeviceSpec(name, 40, 40) for name in ("one", "two")))
DEADLINE_S = 240
"""Of a round; a machine with other work on it takes a minute for what takes seconds alone."""
PATIENCE_S = 1800
SETTINGS = ("train.rounds=3", "data.limit=120", "data.test_limit=20", "method.name=fedavg-lora",
            f"deadline_s={DEADLINE_S}", "threads=1")  # fmt: skip


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    reason = why_not()
    if reason:
        pytest.skip(reason)
    down(SPEC)
    up(SPEC)
    folder = tmp_path_factory.mktemp("bed")
    for device in SPEC.devices:  # what a device can do is not the question here
        known = {"schema": 1, "name": device.name, "flops_per_s": 2e10, "memory_bytes": 4e9,
                 "up_mbps": device.up_mbps, "down_mbps": device.down_mbps}  # fmt: skip
        (folder / f"{device.name}.json").write_text(json.dumps(known))
    try:
        with federation(SPEC, folder) as made:
            yield made
    finally:
        down(SPEC)


class Going:
    """A run that goes on in a thread, while somebody breaks things."""

    def __init__(self, bed, *settings):
        self._bed, self._settings = bed, (*SETTINGS, *settings)
        self.result, self.error = None, None
        self._old = set(self._folders())
        self._thread = threading.Thread(target=self._go)
        self._thread.start()

    def _go(self):
        try:
            self.result = self._bed.run(str(ROOT / "recipes" / "demo.yaml"), self._settings)
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

    def await_round(self, number):
        self.await_that(lambda: self.rounds() >= number, f"round {number}", look_s=0.5)

    def await_that(self, happens, what, *, look_s=0.02):
        until = time.monotonic() + PATIENCE_S
        while not happens():
            assert self._thread.is_alive(), f"the run ended early: {self.error or self.result}"
            assert time.monotonic() < until, f"{what} did not come"
            time.sleep(look_s)

    def numbers(self):
        lines = (self.folder / "rounds.jsonl").read_text().splitlines()
        return [json.loads(line)["round"] for line in lines]

    def statuses(self):
        with (self.folder / "devices.csv").open() as file:
            return {(int(row["round"]), row["name"]): row["status"] for row in csv.DictReader(file)}

    def end(self, *, patience_s=PATIENCE_S):
        self._thread.join(patience_s)
        assert not self._thread.is_alive(), "the run did not end"
        if self.error is not None:
            raise self.error
        return [
            json.loads(line) for line in (self.folder / "rounds.jsonl").read_text().splitlines()
        ]


def resumed(bed, folder):
    """Go on with a run as soon as the server answers again."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return bed.resume(folder)
        except RuntimeError as error:
            if "ended with 16" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(2.0)


def kill(pattern, under):
    """Kill -9 what runs under a process and matches; return how many there were."""
    found = subprocess.run(
        ["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 2) for line in found.stdout.splitlines()[1:]]
    below, grown = {str(under)}, True
    while grown:
        more = {pid for pid, parent, _ in rows if parent in below} - below
        below |= more
        grown = bool(more)
    doomed = [int(pid) for pid, _, args in rows if pid in below and pattern in args]
    for pid in doomed:
        with suppress(ProcessLookupError):  # it has ended with its parent
            os.kill(pid, signal.SIGKILL)
    return len(doomed)


def sent_bytes(device):
    """Bytes that a device has sent so far."""
    told = subprocess.run(
        ["ip", "netns", "exec", device_space(SPEC, device), "cat", "/proc/net/dev"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return next(
        int(line.split()[9]) for line in told.splitlines() if line.strip().startswith("air:")
    )


def test_a_worker_that_is_killed_costs_its_round_at_most(bed):
    run = Going(bed)
    run.await_round(1)
    assert kill("airtune.deploy.worker", bed.agents[0].pid)
    rows = run.end()
    assert len(rows) == 3
    assert rows[-1]["counts"]["ok"] >= 1


def test_a_device_that_dies_during_its_upload_loses_that_round_alone(bed):
    """Everything of it ends with kill -9 while its update is on the way; the agent comes back."""
    run = Going(bed)
    run.await_round(1)
    set_rate(SPEC, 0, 0.1)
    sent = sent_bytes(0)
    run.await_that(lambda: sent_bytes(0) > sent + 40_000 and is_sending(SPEC, 0), "an upload")
    assert kill("", bed.agents[0].pid)
    bed.agents[0].wait(60)
    set_rate(SPEC, 0, 40)
    bed.start_agent(0)
    rows = run.end()
    assert len(rows) == 3
    found = run.statuses()
    assert {found[number, "two"] for number in range(3)} == {"ok"}
    assert found[1, "one"] in {"absent", "late", "failed"}


def test_a_device_20_times_slower_is_late_and_the_run_goes_on(bed):
    if not (CGROUP / device_space(SPEC, 0)).is_dir():
        pytest.skip("no cpu control group here, so nothing can be made slow")
    run = Going(bed, "deadline_s=60", "train.local_steps=30", "evaluation.every=3")
    run.await_round(1)
    set_speed(SPEC, 0, 0.02)
    try:
        run.await_round(2)
    finally:
        set_speed(SPEC, 0, 1.0)
    rows = run.end()
    assert len(rows) == 3
    found = run.statuses()
    assert "late" in {found[number, "one"] for number in (1, 2)}
    assert rows[1]["round_s"] < 2 * 60


def test_a_link_that_goes_down_and_up_costs_its_round_at_most(bed):
    run = Going(bed)
    run.await_round(1)
    set_link(SPEC, 1, is_up=False)
    time.sleep(10)
    set_link(SPEC, 1, is_up=True)
    rows = run.end()
    assert len(rows) == 3
    assert all(row["counts"]["ok"] >= 1 for row in rows)


def test_a_device_that_dies_in_a_split_round_stops_nobody(bed):
    run = Going(bed, "method.name=sft", "train.rounds=2", "train.local_steps=40")
    sent = sent_bytes(0)
    run.await_that(lambda: sent_bytes(0) > sent + 500_000, "some of its forty steps")
    assert kill("airtune.deploy.worker", bed.agents[0].pid)
    rows = run.end()
    assert len(rows) == 2
    found = run.statuses()
    assert {found[number, "two"] for number in range(2)} == {"ok"}
    assert found[0, "one"] != "ok"
    assert rows[0]["split"]["device_steps"][1] == 40


def test_a_runs_process_that_is_killed_fails_the_run_and_it_resumes(bed):
    run = Going(bed)
    run.await_round(1)
    assert kill("airtune.deploy.runner", bed.server.pid)
    with pytest.raises(RuntimeError):
        run.end()
    done = run.rounds()
    assert bed.resume(run.folder)["result"]
    assert done >= 1
    assert run.numbers() == [0, 1, 2]


def test_a_front_that_is_killed_comes_back_and_the_run_resumes(bed):
    run = Going(bed)
    run.await_round(1)
    assert kill("airtune.deploy.front", bed.server.pid)
    with pytest.raises(RuntimeError):
        run.end()
    done = run.rounds()
    assert resumed(bed, run.folder)["result"]
    assert done >= 1
    assert run.numbers() == [0, 1, 2]
