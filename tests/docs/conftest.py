"""A folder with all that the pages name: a recipe, data, a base, a finished run."""

import json
import shutil

import pytest
from tests.docs.pages import ROOT, method_of_contributing

from airtune.cli.main import invoke
from airtune.data.embedded import EMBEDDED_MODEL
from airtune.recipe import load_recipe

QUICK = (
    "train.rounds=1", "train.local_steps=1", "train.per_device_train_batch_size=2", "fleet.devices=2",
    "data.limit=40", "data.test_limit=8", "data.max_length=40", "calibration.rounds=2",
    "calibration.devices=2", "split.rounds=1", "split.devices=2", "evaluation.leakage=false",
    "threads=1",
)  # fmt: skip
RUNS = {
    "runs/2026-01-01_00-00-00-pruned": "fedspine",
    "runs/2026-01-01_00-00-01-dense": "fedavg-lora",
}

TEXT = "../shared/data/text"
HUB_STAND_IN = {
    "nyu-mll/glue": [
        f"data.source={TEXT}/sst2_dev.jsonl",
        "data.test_split=null",
        "data.subset=null",
        "data.columns={text: text, label: label}",
    ],
    "databricks/databricks-dolly-15k": [f"data.source={TEXT}/dolly.jsonl"],
}
"""Local rows of the same data sets: no test may fetch from a hub."""


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The files that the pages name, made once."""
    folder = tmp_path_factory.mktemp("reader")
    words = ("red", "blue", "green", "pump", "valve", "leak")
    rows = [
        {"prompt": f"what is {words[i % 6]} {i}", "completion": f"{words[(i + 1) % 6]} {i + 1}"}
        for i in range(60)
    ]
    for name in ("logs.jsonl", "test.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    tickets = [f"{words[i % 6]} number {i},{'ab'[i % 2]},{i % 3}\n" for i in range(60)]
    (folder / "tickets.csv").write_text("message,team,site\n" + "".join(tickets))
    moods = [f"{words[i % 6]} number {i},{('positive', 'negative')[i % 2]}\n" for i in range(60)]
    for name in ("mood_train.csv", "mood_test.csv"):
        (folder / name).write_text("sentence,mood\n" + "".join(moods))
    (folder / "recipe.yaml").write_text("method: {name: jcpba, budget: 0.2}\n")
    (folder / "mine.py").write_text(method_of_contributing())
    shutil.copytree(EMBEDDED_MODEL, folder / "base")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    for name, method in RUNS.items():
        words = ["run", "--folder", str(folder / name), "--json", "--set", *QUICK]
        assert invoke([*words, f"method.name={method}"]) == 0
    return folder


@pytest.fixture
def desk(made, tmp_path, monkeypatch):
    """A copy of those files of one's own, as the current folder."""
    desk = tmp_path / "desk"
    shutil.copytree(made, desk, symlinks=True)
    monkeypatch.chdir(desk)
    return desk


@pytest.fixture
def small_share(desk):
    """Return settings that make a recipe for the evaluation data small; they lie beside `desk`."""
    shared = ROOT.parent / "shared"
    if not (shared / "data" / "text").is_dir():
        pytest.skip("the evaluation data do not lie beside the checkout")
    (desk.parent / "shared").symlink_to(shared)

    def settings(path):
        recipe = load_recipe(path)
        changes = ["data.max_length=128"]
        if recipe.data.task != "image-classification":
            changes.append("model.source=./base")
        if recipe.data.source in HUB_STAND_IN:
            changes += HUB_STAND_IN[recipe.data.source]
        return ["--set", *QUICK, *changes]

    return settings
