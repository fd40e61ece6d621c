"""The walks of docs/architecture.md: every file they name is run by a round of their method."""

import re
import sys
from pathlib import Path

import pytest

from airtune import load_recipe
from airtune.run import run_recipe

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "airtune"
SMALL = [
    "data.limit=60",
    "data.test_limit=10",
    "data.max_length=40",
    "fleet.devices=3",
    "threads=1",
    "train.rounds=1",
    "train.local_steps=1",
]


def files_of_the_walk(method):
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.split(f"## A round of `{method}`")[1].split("\n## ")[0].split("\n\n", 2)[2]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    return {name for row in rows for name in re.findall(r"`([a-z_/]+\.py)`", row)}


@pytest.mark.parametrize(
    ("method", "settings"),
    [("fedavg-lora", []), ("sft", ["method.codec=deadzone", "method.step=1.0", "method.cut=1"])],
)
def test_every_file_of_a_walk_is_run_by_a_round(method, settings, tmp_path):
    named = files_of_the_walk(method)
    assert len(named) > 12
    ran = set()

    def look(frame, event, argument):
        if event == "call":
            ran.add(frame.f_code.co_filename)

    recipe = load_recipe(overrides=[*SMALL, f"method.name={method}", *settings])
    sys.setprofile(look)
    try:
        run_recipe(recipe, folder=tmp_path / "run", reports=False)
    finally:
        sys.setprofile(None)
    assert {name for name in named if str(PACKAGE / name) not in ran} == set()
