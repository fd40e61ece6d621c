"""A bed of real processes for faults: two devices on shaped links, a server, and runs that go on."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

pytest.importorskip("grpc", reason="grpcio is not installed: pip install 'airtune[federation]'")

from testbed.federation import federation  # noqa: E402
from testbed.network import device_space, down, up, why_not  # noqa: E402
from testbed.spec import DeviceSpec, Spec  # noqa: E402

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
SPEC = Spec(f"chaos{WORKER}", tuple(DeviceSpec(name, 40, 40) for name in ("one", "two")))
CULPRIT, OTHER = 0, 1
PATIENCE_S = 600
DEADLINE_S, OVER_S = 25, 2.0
"""Of a round, and by how much it may end later; a busy machine takes ten seconds for what takes one alone."""
RUNS_BYTES = 256 << 20
"""Of the small disk on which the server's runs are."""
SETTINGS = (
    "train.rounds=3",
    "data.limit=120",
    "data.test_limit=20",
    "method.name=fedavg-lora",
    "threads=1",
)


@contextmanager
def laid_out(folder):
    """A federation on the bed, with probe files in place of probes."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    down(SPEC)
    up(SPEC)
    for device in SPEC.devices:  # what a device can do is not the question here
        known = {
            "schema": 1,
            "name": device.name,
            "flops_per_s": 2e10,
            "memory_bytes": 4e9,
            "up_mbps": device.up_mbps,
            "down_mbps": device.down_mbps,
        }
        (folder / f"{device.name}.json").write_text(json.dumps(known))
    runs = folder / "server" / "runs"
    runs.mkdir(parents=True)
    # made before the server starts, as that sees no mount that comes later
    mount = ["mount", "-t", "tmpfs", "-o", f"size={RUNS_BYTES}", "none", str(runs)]
    subprocess.run(mount, capture_output=True, check=False)
    try:
        with federation(SPEC, folder) as made:
            yield made
    finally:
        down(SPEC)
        subprocess.run(["umount", "-l", str(runs)], capture_output=True, check=False)


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

    def rows(self):
        path = None if self.folder is None else self.folder / "rounds.jsonl"
        if path is None or not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text().splitlines()]

    def await_round(self, number):
        self.await_that(lambda: len(self.rows()) >= number, f"round {number}")

    def await_that(self, happens, what):
        until = time.monotonic() + PATIENCE_S
        while not happens():
            assert self._thread.is_alive(), f"the run ended early: {self.error or self.result}"
            assert time.monotonic() < until, f"{what} did not come"
            time.sleep(0.02)

    def devices(self):
        with (self.folder / "devices.csv").open() as file:
            return list(csv.DictReader(file))

    def statuses(self):
        return {(int(row["round"]), row["name"]): row["status"] for row in self.devices()}

    def reasons(self, name):
        return " ".join(row["reason"] for row in self.devices() if row["name"] == name)

    def lost_after_s(self, struck):
        """Wait until the command has ended with an error; return seconds since a moment, and the error."""
        with pytest.raises(RuntimeError) as caught:
            self.end()
        return time.monotonic() - struck, str(caught.value)

    def end(self):
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the run did not end"
        if self.error is not None:
            raise self.error
        return self.rows()


def below(pattern, under):
    """Return the processes that run under one, itself too, and match."""
    found = subprocess.run(
        ["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 2) for line in found.stdout.splitlines()[1:]]
    found, grown = {str(under)}, True
    while grown:
        more = {pid for pid, parent, _ in rows if parent in found} - found
        found |= more
        grown = bool(more)
    return [int(pid) for pid, _, args in rows if pid in found and pattern in args]


def is_running(pid):
    """Return whether a process lives; one that only waits to be buried does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def kill(pattern, under):
    """Kill -9 what runs under a process and matches; return how many there were."""
    doomed = below(pattern, under)
    for pid in doomed:
        with suppress(ProcessLookupError):  # it has ended with its parent
            os.kill(pid, signal.SIGKILL)
    return len(doomed)


def sent_bytes(device):
    """Bytes that a device has sent so far."""
    told = subprocess.run(
        ["ip", "netns", "exec", device_space(SPEC, device), "cat", "/proc/net/dev"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return next(
        int(line.split()[9]) for line in told.splitlines() if line.strip().startswith("air:")
    )
