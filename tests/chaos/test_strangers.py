"""A device that comes back as another, or whose clock is wrong: it is told, and the run says so."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from chaos_bed import CULPRIT, DEADLINE_S, OVER_S, ROOT, SPEC, kill
from safetensors.torch import load_file, save_file

MODEL = ROOT / "src" / "airtune" / "assets" / "model"


def come_back(bed, *words, environment=None):
    """End a device and start it otherwise."""
    kill("", bed.agents[CULPRIT].pid)
    bed.agents[CULPRIT].wait(60)
    bed.start_agent(CULPRIT, *words, environment=environment)


@pytest.fixture
def home(bed):
    """Lets the culprit come back as it was."""
    yield bed
    come_back(bed)


def other_data(folder):
    path = folder / "other.jsonl"
    rows = [{"prompt": f"{a} + {a} =", "completion": f" {2 * a}"} for a in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return ["--data", str(path)], {}


def other_base(folder):
    shutil.copytree(MODEL, folder / "model")
    [path] = (folder / "model").glob("*.safetensors")
    weights = load_file(path)
    save_file({name: 1.01 * tensor for name, tensor in weights.items()}, path, {"format": "pt"})
    return ["--model", str(folder / "model")], {}


def other_version(folder):
    said = folder / "airtune-99.0.dist-info"
    said.mkdir()
    (said / "METADATA").write_text("Metadata-Version: 2.1\nName: airtune\nVersion: 99.0\n")
    return [], {"PYTHONPATH": f"{folder}:{ROOT / 'src'}"}


CHANGES = {
    "data": (other_data, "other data"),
    "base": (other_base, "other weights"),
    "version": (other_version, "99.0"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_device_that_comes_back_with_another_is_told_and_reported(home, going, tmp_path, what):
    change, says = CHANGES[what]
    words, environment = change(tmp_path)
    run = going(
        "train.rounds=40", "train.local_steps=8", f"deadline_s={DEADLINE_S}", "evaluation.every=40"
    )
    run.await_round(1)
    told = len(home.log(CULPRIT))
    come_back(home, *words, environment=environment)
    run.await_that(lambda: says in home.log(CULPRIT)[told:], "a word to the device")
    if what != "version":
        run.await_that(lambda: says in run.reasons("one"), "a word in the record")
    rows = run.end()
    assert {row["status"] for row in run.devices() if row["name"] == "two"} == {"ok"}
    assert all(row["round_s"] <= DEADLINE_S + OVER_S for row in rows)
    assert run.devices()[-1]["status"] != "ok" or run.devices()[-1]["name"] == "two"


@pytest.fixture
def clock(tmp_path):
    """A library that makes a process's clock wrong."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a clock is made wrong by a library in C, and there is no compiler here")
    source, path = Path(__file__).with_name("clock.c"), tmp_path / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(path), str(source), "-ldl"], check=True)
    return lambda off_s: {"LD_PRELOAD": str(path), "AIRTUNE_CLOCK_OFF_S": str(off_s)}


@pytest.mark.parametrize("off_s", [-12 * 3600, 5 * 86400])
def test_a_clock_that_is_wrong_changes_nothing(home, going, clock, off_s):
    come_back(home, environment=clock(off_s))
    run = going(f"deadline_s={DEADLINE_S}")
    rows = run.end()
    assert set(run.statuses().values()) == {"ok"}
    assert all(0 <= float(row["finish_s"]) <= DEADLINE_S for row in run.devices())
    assert all(row["round_s"] <= DEADLINE_S + OVER_S for row in rows)
    assert len(rows) == 3


def test_a_clock_before_the_certificate_is_named(home, clock):
    told = len(home.log(CULPRIT))
    kill("", home.agents[CULPRIT].pid)
    home.agents[CULPRIT].wait(60)
    home.start_agent(CULPRIT, environment=clock(-30 * 86400))
    assert home.agents[CULPRIT].wait(60)
    assert "set this machine's clock" in home.log(CULPRIT)[told:]
    assert SPEC.devices[CULPRIT].name == "one"
