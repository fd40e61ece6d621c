"""A federation on the test bed: server, agents and a run as real processes, each in its namespace."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed.network import SERVER_ADDRESS, inside
from testbed.spec import Spec

PORT = 9092
"""On which the server listens; its namespace has nothing else."""
_AIRTUNE = (sys.executable, "-m", "airtune")
_GOODPUT = 0.955
"""Of a shaped rate that is left beside headers, as measured for large transfers."""


@dataclass(slots=True)
class Federation:
    """Processes on a test bed that is up."""

    spec: Spec
    folder: Path
    probe_s: float = 8.0
    keys: dict[str, Path] = field(default_factory=dict)
    """What belongs on each device, by its name."""
    agents: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    server: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    """What the start of the server took."""

    @property
    def state(self) -> Path:
        """The server's folder."""
        return self.folder / "server"

    def start_server(self) -> None:
        """Start the server and wait until it is ready."""
        self.server = self._begin(None, "server", "start", "--state", str(self.state), "--port", str(PORT), "--name", SERVER_ADDRESS, log="server")  # fmt: skip
        began = time.monotonic()
        until = began + 120
        while not (self.state / "server.json").is_file():
            if self.server.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start; see {self.folder / 'server.log'}")
            time.sleep(0.2)
        self.started_s = time.monotonic() - began

    def enroll(self) -> None:
        """Give every device a key and measure it, where it will run."""
        names = [device.name for device in self.spec.devices]
        told = self._call(None, "device", "add", *names, "--state", str(self.state), "--json")
        for row in json.loads(told)["devices"]:
            self.keys[row["name"]] = Path(row["folder"])
        for place, device in enumerate(self.spec.devices):
            words = ["--name", device.name, "--up-mbps", str(_GOODPUT * device.up_mbps),
                     "--down-mbps", str(_GOODPUT * device.down_mbps)]  # fmt: skip
            if device.memory_mb is not None:
                words += ["--memory", str(device.memory_mb)]
            self._probe(place, str(self.folder / f"{device.name}.json"), words)

    def _probe(self, place: int, output: str, words: Sequence[str]) -> None:
        """Probe a device, unless its file is there; longer where neighbours spoilt the times."""
        if Path(output).is_file():
            return
        for stretch in (1, 2, 4):
            try:
                self._call(place, "probe", output, *words, "--seconds", str(stretch * self.probe_s))
                return
            except RuntimeError:
                if stretch == 4:
                    raise

    def start_agent(
        self, place: int, *more: str, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start a device's agent, perhaps with more words, of which the last counts."""
        device = self.spec.devices[place]
        keys = self.keys[device.name]
        words = ["--server", f"{SERVER_ADDRESS}:{PORT}", "--data", "recipe",
                 "--key", str(keys / "device.key"), "--ca", str(keys / "ca.crt"),
                 "--probe", str(self.folder / f"{device.name}.json")]  # fmt: skip
        if device.memory_mb is not None:
            words += ["--memory", f"{device.memory_mb:g}MB"]
        self.agents[place] = self._begin(
            place, "agent", *words, *more, log=device.name, environment=environment
        )

    def log(self, place: int) -> str:
        """Return what a device's agents have written."""
        return (self.folder / f"{self.spec.devices[place].name}.log").read_text(encoding="utf-8")

    def run(self, recipe: str, settings: Sequence[str] = ()) -> dict[str, Any]:
        """Run a recipe over the devices and return what the command says at its end."""
        return self._submit(recipe, *settings)

    def resume(self, folder: Path) -> dict[str, Any]:
        """Go on with a run that was cut off."""
        return self._submit("--resume", str(folder))

    def _submit(self, *words: str) -> dict[str, Any]:
        said = self._call(
            None, "run", *words, "--server", f"{SERVER_ADDRESS}:{PORT}",
            "--ca", str(self.state / "tls" / "ca.crt"), "--devices", str(len(self.agents)), "--json",
        )  # fmt: skip
        return dict(json.loads(said))

    def stop(self) -> None:
        """End agents, then the server."""
        for process in (*self.agents.values(), self.server):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()

    def _begin(
        self, place: int | None, *words: str, log: str,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        with (self.folder / f"{log}.log").open("ab") as file:
            return subprocess.Popen(
                inside(self.spec, place, [*_AIRTUNE, *words]), stdout=file,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=self.folder,
                start_new_session=True, env={**os.environ, **(environment or {})},
            )  # fmt: skip

    def _call(self, place: int | None, *words: str) -> str:
        done = subprocess.run(
            inside(self.spec, place, [*_AIRTUNE, *words]), capture_output=True, text=True,
            check=False, cwd=self.folder,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"airtune {words[0]} ended with {done.returncode}: {done.stderr.strip() or done.stdout}")  # fmt: skip
        return done.stdout


@contextmanager
def federation(spec: Spec, folder: Path, *, probe_s: float = 8.0) -> Iterator[Federation]:
    """Start a server and every device's agent, and end them all."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Federation(spec, folder.resolve(), probe_s)
    try:
        made.start_server()
        made.enroll()
        for place in range(len(spec.devices)):
            made.start_agent(place)
        yield made
    finally:
        made.stop()


@dataclass(frozen=True, slots=True)
class Compared:
    """Seconds of a round: predicted, measured, and what the measured ones of its last device are."""

    round: int
    predicted_s: float
    """Median of what the server expected before the round ..."""
    low_s: float
    high_s: float
    """... and the ends of the interval that holds four rounds of five."""
    measured_s: float
    compute_s: float
    """In the worker, as it says, judging included; in a split round, with its waits for the server."""
    link_s: float
    """Of its task and of its answer, each from the first part to the last."""
    wait_s: float
    """All else: tickets, connections, and whatever else the machine did."""

    @property
    def is_inside(self) -> bool:
        """The round took what its interval said."""
        return self.low_s <= self.measured_s <= self.high_s

    @property
    def error(self) -> float:
        """Relative error of the median."""
        return abs(self.predicted_s - self.measured_s) / self.measured_s


def compare(run_folder: Path) -> list[Compared]:
    """Return every round of a run in which an update counted."""
    lines = (run_folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    with (run_folder / "devices.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "ok"]
    found = []
    for said in map(json.loads, lines):
        mine = [row for row in rows if int(row["round"]) == said["round"]]
        if not mine or said.get("predicted_low_s") is None:
            continue
        last = max(mine, key=lambda row: float(row["finish_s"]))
        found.append(Compared(
            said["round"], said["predicted_s"], said["predicted_low_s"], said["predicted_high_s"],
            said["round_s"], float(last["compute_s"]) + float(last["judging_s"]),
            float(last["download_s"]) + float(last["upload_s"]), float(last["wait_s"]),
        ))  # fmt: skip
    return found
