"""Rounds of `auto` in which whole and cut devices are side by side, over real processes with TLS."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from airtune.recipe import Recipe, dump_recipe
from airtune.records import read_run

NAMES = ("far", "small", "strong")
LONG_S = 1200


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, open_site: Any) -> Iterator[Any]:
    with open_site(tmp_path_factory.mktemp("site"), *NAMES) as made:
        yield made


@pytest.fixture
def begin(site: Any, mixed: Callable[..., Recipe]) -> Iterator[Callable[..., Any]]:
    """Submits a run in which nobody is cut who need not be."""
    begun: list[Any] = []

    def run(name: str, **changes: Any) -> Any:
        told = mixed(site.folder / "costs", cut=9.0, name=name, **changes)
        (site.folder / f"{name}.yaml").write_text(dump_recipe(told))
        begun.append(site.begin("run", f"{name}.yaml", "--server", site.address, "--devices", "3"))
        return begun[-1]

    yield run
    for one in begun:
        one.kill()
        one.communicate()


def _until(happens: Callable[[], Any], run: Any, site: Any) -> Any:
    end = time.monotonic() + LONG_S
    while not (found := happens()):
        assert run.poll() is None, "".join(run.communicate()) + site.said()
        assert time.monotonic() < end, site.said()
        time.sleep(0.2)
    return found


def test_mixed_rounds_over_tls_are_recorded_and_reported(site: Any, begin: Any) -> None:
    run = begin("mixed", **{"train.rounds": 3})
    out, error = run.communicate(timeout=LONG_S)
    assert run.returncode == 0, out + error + site.said()
    [folder] = (site.state / "runs").glob("*mixed")
    record, devices = read_run(folder), read_run(folder).devices
    assert devices["status"].tolist() == ["ok"] * 9
    is_cut = devices["cut"] > 0
    assert set(devices["name"][is_cut]) == {"small"}
    assert is_cut.sum() == 3
    for name in ("server_s", "step_up_bytes", "step_down_bytes"):
        assert (devices[name][is_cut] > 0).all()
        assert (devices[name][~is_cut] == 0).all()
    assert (devices["server_s"] < np.where(is_cut, devices["finish_s"], 1.0)).all()
    assert [row["split"]["device"] for row in record.rounds] == [[1]] * 3
    assert record.results["validation_best"]["loss"] < record.results["initial"]["loss"]
    page = (folder / "report.html").read_text()
    assert "The server computed" in page


def test_a_device_that_dies_in_a_mixed_round_costs_its_own_round_and_comes_back(
    site: Any, begin: Any
) -> None:
    run = begin("dies", **{"train.rounds": 500, "deadline_s": 90, "evaluation.every": 500})
    runs = site.state / "runs"

    def last(name: str) -> str:
        """Return what became of a device in the last round that is over; "" = it was not asked."""
        files = [path for path in runs.glob("*dies/devices.csv") if path.stat().st_size]
        devices = read_run(files[0].parent).devices if files else None
        if devices is None:
            return ""
        is_last = devices["round"] == devices["round"].max(initial=0)
        return "".join(devices["status"][is_last & (devices["name"] == name)])

    def hurt(name: str) -> None:
        os.killpg(site.agents[name].pid, signal.SIGKILL)
        site.agents[name].wait(60)
        _until(lambda: last("far") == "ok" != last(name), run, site)
        site.start_agent(name)
        _until(lambda: last(name) == "ok", run, site)

    _until(lambda: last("strong") == "ok", run, site)
    hurt("strong")
    hurt("small")
    [going] = [
        row
        for row in json.loads(site.airtune("server", "status", "--json").stdout)["runs"]
        if row["status"] == "running"
    ]
    stopped = site.airtune("server", "stop", "--run", str(going["number"]))
    assert stopped.returncode == 0, stopped.stderr
    run.communicate(timeout=LONG_S)
