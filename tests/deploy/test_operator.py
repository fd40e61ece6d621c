"""The deployment page, followed as an operator would: a server, five agents, two operators."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.conftest import AIRTUNE, LONG_S, Site, environment
from tests.deploy.test_server import RECIPE

RECIPE = RECIPE.replace("source: pocket, devices: 2", "source: pocket, devices: 5")
NORTH, SOUTH = ("n1", "n2", "n3"), ("s1", "s2")


class Grounds(Site):
    """A server's folder, and a folder for each device and operator, as on machines of their own."""

    def run_at(self, home: Path, *words: str) -> str:
        done = self.airtune(*words, cwd=home)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}{self.said()}"
        return done.stdout

    def agent(self, name: str, *words: str) -> None:
        self.start_agent(name, *words, home=self.folder / name)

    def listed(self) -> dict[str, Any]:
        return json.loads(self.run_at(self.folder, "server", "status", "--json"))

    def status(self) -> dict[str, str]:
        return {row["name"]: row["status"] for row in self.listed()["devices"]}

    def runs(self) -> dict[int, str]:
        return {row["number"]: row["status"] for row in self.listed()["runs"]}

    def until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + LONG_S
        while not holds():
            assert time.monotonic() < end, self.said()
            time.sleep(1.0)


@pytest.fixture
def grounds(tmp_path: Path) -> Iterator[Grounds]:
    made = Grounds(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    try:
        yield made
    finally:
        made.close()


def operator(grounds: Grounds, name: str, role: str) -> Path:
    """Add an operator and copy its folder to a machine of its own."""
    grounds.run_at(grounds.folder, "operator", "add", name, "--role", role)
    home = grounds.folder / name
    shutil.copytree(grounds.folder / "airtune-server" / "bundles" / name, home)
    (home / "recipe.yaml").write_text(RECIPE)
    return home


def test_the_page_from_the_first_start_to_a_restore(grounds: Grounds) -> None:
    here, server = (
        grounds.folder,
        ("--server", grounds.address, "--ca", "ca.crt", "--key", "operator.key"),
    )
    port = str(grounds.port)
    grounds.run_at(here, "server", "check", "--port", port)
    grounds.run_at(here, "server", "start", "--port", port, "--detach")
    grounds.run_at(here, "server", "check", "--port", port)

    # five devices enrol by two codes
    for site, names in (("north", NORTH), ("south", SOUTH)):
        code = json.loads(
            grounds.run_at(
                here,
                "device",
                "code",
                "--count",
                str(len(names)),
                "--label",
                f"site={site}",
                "--json",
            )
        )["code"]
        for name in names:
            grounds.agent(name, "--enroll", code, "--name", name, "--patience", "10")
    grounds.until(lambda: grounds.status() == dict.fromkeys((*NORTH, *SOUTH), "online"))
    looked = json.loads(
        grounds.run_at(
            here / "n1", "agent", "check", "--server", grounds.address, "--data", "recipe", "--json"
        )
    )
    assert "fault" not in {one["verdict"] for one in looked["findings"]}, looked

    # two operators: one runs in the north, one in the south, a third run waits for both
    ada, eve = operator(grounds, "ada", "run"), operator(grounds, "eve", "view")
    submitted = [
        subprocess.Popen(
            [*AIRTUNE, "run", "recipe.yaml", *server, *words],
            cwd=ada,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for words in (
            ["--where", "site=north", "--devices", "3"],
            ["--where", "site=south", "--devices", "2"],
            ["--devices", "5"],
        )
        if not time.sleep(4.0)
    ]
    grounds.until(lambda: len(grounds.runs()) == 3)
    assert grounds.runs()[3] == "queued"
    refused = grounds.airtune("run", "recipe.yaml", *server, cwd=eve)
    assert refused.returncode == 17, refused.stderr
    seen = json.loads(grounds.run_at(eve, "server", "status", *server, "--json"))["runs"]
    assert {row["operator"] for row in seen} == {"ada"}
    backed_up = here / "while-it-runs.tar.gz"
    grounds.run_at(here, "server", "backup", str(backed_up))
    for process in submitted:
        _, said = process.communicate(timeout=LONG_S)
        assert process.returncode == 0, said + grounds.said()
    devices = {row["number"]: set(row["devices"]) for row in grounds.listed()["runs"]}
    assert devices == {1: set(NORTH), 2: set(SOUTH), 3: {*NORTH, *SOUTH}}

    # new keys for the south, a new certificate, ada's key; a device is revoked
    before = (here / "s1" / "device.key").read_bytes()
    grounds.run_at(here, "device", "rotate", "--where", "site=south")
    grounds.run_at(here, "server", "rotate")
    grounds.run_at(ada, "operator", "renew", *server)
    grounds.run_at(here, "device", "revoke", "n3")
    grounds.until(lambda: (here / "s1" / "device.key").read_bytes() != before)
    grounds.until(lambda: "n3" not in grounds.status())
    assert grounds.agents["n3"].wait(LONG_S) == 17

    # an upgrade: a device is drained, started anew, and serves again; then the server
    grounds.run_at(here, "device", "drain", "n1")
    assert grounds.status()["n1"] == "draining"
    grounds.agents["n1"].terminate()
    grounds.agents["n1"].wait(LONG_S)
    grounds.agent("n1")
    grounds.until(lambda: grounds.status()["n1"] == "online")
    grounds.run_at(here, "server", "drain")
    assert not (here / "airtune-server" / "server.json").exists()

    # a restore elsewhere; all devices but those with new keys come back, and so does the revoked
    shutil.move(here / "airtune-server", here / "lost")
    grounds.run_at(here, "server", "restore", str(backed_up))
    again = grounds.airtune("server", "restore", str(backed_up))
    assert again.returncode == 9, again.stderr
    grounds.run_at(here, "server", "start", "--port", port, "--detach")
    grounds.until(lambda: [grounds.status()[name] for name in ("n1", "n2")] == ["online"] * 2)
    assert grounds.status()["n3"] == "offline"
    assert os.stat(here / "airtune-server" / "tls" / "ca.key").st_mode & 0o777 == 0o600
