"""A real server with TLS and keys, two agents in processes of their own, and a run."""

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airtune.recipe import load_recipe
from airtune.records import read_run

RECIPE = """
name: gate
train: {rounds: 2, local_steps: 1, per_device_train_batch_size: 2}
data: {limit: 40, test_limit: 8, max_length: 48}
fleet: {source: pocket, devices: 2}
method: {name: jcpba, budget: 0.25}
evaluation: {every: 2}
threads: 1
"""
LONG_S = 1800


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, open_site: Any) -> Iterator[Any]:
    with open_site(tmp_path_factory.mktemp("site"), "a", "b") as made:
        (made.folder / "recipe.yaml").write_text(RECIPE)
        yield made


@pytest.fixture(scope="module")
def done(site: Any) -> Any:
    ran = site.airtune("run", "recipe.yaml", "--server", site.address, "--devices", "2", "--json")
    assert ran.returncode == 0, ran.stdout + ran.stderr + site.said()
    return json.loads(ran.stdout)


def test_a_run_over_tls_and_keys_ends_with_a_better_model(done: Any) -> None:
    record = read_run(done["folder"])
    assert list(record.devices["status"]) == ["ok"] * 4
    assert set(record.devices["name"]) == {"a", "b"}
    assert record.results["validation_best"]["loss"] < record.results["initial"]["loss"]
    assert (record.devices["upload_bytes"] > 0).all()
    assert (record.devices["pruned"] > 0).any()
    assert (Path(done["folder"]) / "report.html").is_file()


def test_status_shows_devices_and_rounds(site: Any, done: Any) -> None:
    said = json.loads(site.airtune("status", "--json").stdout)
    assert said["done"] == said["rounds"] == 2
    assert [row["name"] for row in said["devices"]] == ["a", "b"]
    shown = json.loads(site.airtune("server", "status", "--json").stdout)
    assert {row["name"] for row in shown["devices"]} == {"a", "b"}
    assert shown["runs"][0]["status"] == "finished:completed"


def test_a_key_that_the_server_does_not_know_is_refused(site: Any, done: Any) -> None:
    stranger = site.folder / "stranger"
    other = site.airtune("device", "add", "c", "--state", str(stranger))
    assert other.returncode == 0, other.stderr
    home = stranger / "bundles" / "c"
    (home / "ca.crt").write_bytes((site.folder / "airtune-server/tls/ca.crt").read_bytes())
    refused = site.airtune(
        "agent", "--server", site.address, "--data", "recipe", "--patience", "0", cwd=home
    )
    assert refused.returncode == 17, refused.stderr
    assert "does not know the key" in refused.stderr


def test_another_servers_certificate_is_refused(site: Any) -> None:
    stranger = site.folder / "stranger-2"
    site.airtune("device", "add", "c", "--state", str(stranger))
    refused = site.airtune(
        "agent", "--server", site.address, "--data", "recipe", cwd=stranger / "bundles" / "c"
    )
    assert refused.returncode == 15, refused.stderr
    assert "does not prove itself" in refused.stderr
    asked = site.airtune(
        "run",
        "recipe.yaml",
        "--server",
        site.address,
        "--ca",
        str(stranger / "bundles" / "c" / "ca.crt"),
        "--key",
        str(stranger / "bundles" / "c" / "device.key"),
    )
    assert asked.returncode == 15, asked.stderr
    assert "does not prove itself" in asked.stderr


def test_a_device_probes_its_link_and_plans_and_runs_read_it(site: Any, done: Any) -> None:
    probed = site.airtune(
        "probe",
        "--server",
        site.address,
        "--seconds",
        "0.2",
        cwd=site.folder / "airtune-server" / "bundles" / "a",
    )
    assert probed.returncode == 0, probed.stderr
    kept = json.loads((site.folder / "airtune-server" / "probes" / "a.json").read_text())
    assert kept["name"] == "a"
    planned = site.airtune(
        "plan", "recipe.yaml", "fleet.source=airtune-server/probes", "fleet.devices=1", "--json"
    )
    assert planned.returncode == 0, planned.stderr
    ran = site.airtune("run", "recipe.yaml", "--server", site.address, "--devices", "2", "--json")
    assert ran.returncode == 0, ran.stderr + site.said()
    taken = json.loads((Path(json.loads(ran.stdout)["folder"]) / "probes" / "a.json").read_text())
    assert taken["up_mbps"] == kept["up_mbps"]


@pytest.mark.parametrize(
    ("method", "apart"),
    [
        ("{name: jcpba, budget: 0.25}", 0.0),
        ("{name: fedspine}", 0.0),
        ("{name: sft, codec: quantised}", 1e-3),
    ],
)
def test_on_the_replayed_clock_the_run_is_that_of_one_process(
    method: str, apart: float, site: Any, done: Any, alone: Any, tmp_path: Path
) -> None:
    recipe = tmp_path / "same.yaml"
    recipe.write_text(RECIPE.replace("{name: jcpba, budget: 0.25}", method))
    ran = site.airtune("run", str(recipe), "--server", site.address, "--replay", "--json")
    assert ran.returncode == 0, ran.stdout + ran.stderr + site.said()
    there, here = (
        read_run(json.loads(ran.stdout)["folder"]),
        alone(load_recipe(recipe), tmp_path / "a"),
    )
    assert there.header["engine"]["clock"] == "replay"
    assert len(here.rounds) == len(there.rounds) == 2
    for name, column in here.devices.items():
        if column.dtype.kind == "f":  # in one process, devices that cut alike are stacked
            np.testing.assert_allclose(column, there.devices[name], rtol=apart, err_msg=name)
        else:
            np.testing.assert_array_equal(column, there.devices[name], err_msg=name)
    for one, other in zip(here.rounds, there.rounds, strict=True):
        for figure in ("train_loss", "upload_bytes", "download_bytes", "round_s", "predicted_s"):
            mine, its = one[figure], other[figure]
            if its is None or not apart:
                assert mine == its, figure
            else:
                assert mine == pytest.approx(its, rel=apart), figure


def test_devices_and_server_split_the_model_over_tls(site: Any, done: Any) -> None:
    halves = site.folder / "halves.yaml"
    halves.write_text(
        RECIPE.replace("{name: jcpba, budget: 0.25}", "{name: sft}").replace("gate", "halves")
    )
    ran = site.airtune("run", "halves.yaml", "--server", site.address, "--devices", "2", "--json")
    assert ran.returncode == 0, ran.stdout + ran.stderr + site.said()
    record = read_run(json.loads(ran.stdout)["folder"])
    assert list(record.devices["status"]) == ["ok"] * 4
    assert (record.devices["cut"] > 0).all()
    for row in record.rounds:
        assert row["split"]["device_steps"] == [1, 1]
        assert row["split"]["activation_up_bytes"] > 0
    assert record.results["validation_best"]["loss"] < record.results["initial"]["loss"]


def test_a_revoked_key_is_refused_by_name(site: Any, done: Any) -> None:
    assert site.airtune("device", "add", "late").returncode == 0
    assert site.airtune("device", "revoke", "late").returncode == 0
    home = site.folder / "airtune-server" / "bundles" / "late"
    refused = site.airtune(
        "agent", "--server", site.address, "--data", "recipe", "--patience", "0", cwd=home
    )
    assert refused.returncode == 17, refused.stderr
    assert "or it was revoked" in refused.stderr
    assert "refused late: its key" in site.airtune("server", "status").stdout


def _await_answer(address: str) -> None:
    """Wait until the server that was killed has been started again."""
    host, port = address.split(":")
    until = time.monotonic() + LONG_S
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=5.0):
                return
        except OSError:
            assert time.monotonic() < until, "the server did not come back"
            time.sleep(0.5)


def test_a_run_goes_on_after_the_server_was_killed(site: Any, done: Any) -> None:
    import signal

    slow = site.folder / "slow.yaml"
    slow.write_text(RECIPE.replace("rounds: 2", "rounds: 4").replace("gate", "killed"))
    run = site.begin("run", "slow.yaml", "--server", site.address, "--devices", "2")
    runs = site.folder / "airtune-server" / "runs"
    until = time.monotonic() + LONG_S
    while time.monotonic() < until:
        rounds = list(runs.glob("*killed/rounds.jsonl"))
        if rounds and rounds[0].read_text().count("\n") >= 1:
            break
        time.sleep(0.2)
    document = json.loads((site.folder / "airtune-server" / "server.json").read_text())
    os.killpg(document["front"], signal.SIGKILL)
    run.communicate(timeout=LONG_S)
    assert run.returncode != 0
    [folder] = runs.glob("*killed")
    before = len(read_run(folder).rounds)
    _await_answer(site.address)
    ran = site.airtune(
        "run", "--server", site.address, "--devices", "2", "--resume", folder.name, "--json"
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr + site.said()
    assert len(read_run(folder).rounds) == 4
    assert before >= 1
