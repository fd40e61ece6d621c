"""What a plan says of staging and of a month's bytes."""

import shutil

import numpy as np
import pytest

from airtune.data import EMBEDDED_MODEL
from airtune.planner import plan_recipe
from airtune.recipe import load_recipe
from airtune.wire.stage import is_base_file

SMALL = ("fleet.devices=3", "train.rounds=4", "method.name=fedavg-lora", "data.max_length=48")


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(EMBEDDED_MODEL, folder)
    return folder


def planned(*words):
    return plan_recipe(load_recipe(None, overrides=[*SMALL, *words]))


def test_staging_is_counted_for_each_device(base) -> None:
    plan = planned(f"model.source={base}", "model.stage=server")
    size = sum(path.stat().st_size for path in base.iterdir() if is_base_file(path.name))
    # a header a group of tensors is added
    np.testing.assert_allclose([row.stage_bytes for row in plan.devices], size, rtol=5e-3)
    assert all(row.stage_s > row.download_s for row in plan.devices)
    [line] = [text for text in plan.assumptions if "without the base model" in text]
    assert all(row.name in line for row in plan.devices)
    without = planned(f"model.source={base}")
    assert plan.total_s == without.total_s


def test_what_is_not_staged_is_not_counted(base) -> None:
    for plan in (planned(f"model.source={base}"), planned("model.stage=server")):
        assert [row.stage_bytes for row in plan.devices] == [0.0] * 3
        assert not any("without the base model" in text for text in plan.assumptions)


def test_a_cap_says_how_many_rounds_a_month_holds() -> None:
    free = planned()
    each = max(row.upload_bytes + row.download_bytes for row in free.devices)
    [line] = [
        text
        for text in planned(f"limits.device_bytes_per_month={2.5 * each}").assumptions
        if "enough for" in text and "limits" in text
    ]
    assert "enough for 2 of 4 rounds" in line
    wide = planned(f"limits.device_bytes_per_month={5 * each}")
    assert not any("limits" in text for text in wide.assumptions)
