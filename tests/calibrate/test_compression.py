"""What compressing activations costs: measured through real cuts, stored, and used by a run."""

import json

import numpy as np
import pytest

from airtune.calibrate import Setting, calibrate_codecs, load, store
from airtune.calibrate.compression import quality_losses
from airtune.errors import CheckpointError
from airtune.plan import CodecSpec, WorkSpec
from airtune.recipe import load_recipe
from airtune.records import read_run
from airtune.run import build_pieces, run_recipe

TINY = ["data.limit=60", "data.test_limit=10", "data.max_length=40", "fleet.devices=3",
        "train.local_steps=1", "train.per_device_train_batch_size=2", "threads=1"]  # fmt: skip
MENU = (CodecSpec("fp16"), CodecSpec("deadzone", step=1.0), CodecSpec("topk", keep=0.02, bits=2))


@pytest.fixture(scope="module")
def measured():
    pieces = build_pieces(load_recipe(None, overrides=TINY))
    setting = Setting(
        base=pieces.assets.base, data=pieces.assets.data, problem=pieces.problem, work=WorkSpec(),
        engine=pieces.engine, rounds=2, devices=2,
    )  # fmt: skip
    return calibrate_codecs(setting, MENU, (1, 3))


def test_coarser_codecs_distort_more_at_every_cut(measured):
    found = measured.calibration
    assert found.codecs == MENU
    assert found.distortion.shape == (2, 3)
    assert np.all(np.diff(found.distortion, axis=1) > 0)
    assert np.all(found.distortion[:, 0] < 1e-6)
    assert np.all((found.distortion[:, 1] > 1e-3) & (found.distortion[:, 2] < 1.0))


def test_half_precision_costs_next_to_nothing_and_no_loss_is_negative(measured):
    assert measured.calibration.quality_loss[0] < 1e-3
    assert np.all(measured.calibration.quality_loss >= 0)
    assert len(measured.curves) == 4


def test_losses_are_read_over_the_later_half():
    assert quality_losses([(9.0, 2.0, 1.0, 1.0), (9.0, 5.0, 1.2, 1.0)]).tolist() == pytest.approx(
        [0.1]
    )


def test_what_was_stored_is_read_again_and_damage_is_refused(measured, tmp_path):
    path = tmp_path / "cache" / "one.json"
    assert load(path) is None
    path.parent.mkdir()
    store(path, measured)
    again = load(path)
    assert again.calibration.codecs == MENU
    np.testing.assert_array_equal(again.calibration.distortion, measured.calibration.distortion)
    document = json.loads(path.read_text())
    document["quality_loss"] = [0.0]
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="damaged: its tables have shapes"):
        load(path)


@pytest.mark.slow
def test_a_run_measures_once_and_chooses_by_it(tmp_path):
    changes = [*TINY, f"output={tmp_path}", "method.name=sft", "method.quality_budget=0.5",
               "train.rounds=1", "split.rounds=1", "split.devices=2",
               "split.codecs=[{kind: fp16}, {kind: deadzone, step: 2.0}]"]  # fmt: skip
    recipe = load_recipe(None, overrides=changes)
    first = run_recipe(recipe, folder=tmp_path / "a", reports=False)
    again = run_recipe(recipe, folder=tmp_path / "b", reports=False)
    one, other = (read_run(result.folder) for result in (first, again))
    assert one.header["split_calibration"] == other.header["split_calibration"]
    assert np.all(one.devices["cut"] >= 1)
    assert "quality budget" in str(one.devices["reason"][0]) or first.rounds == 1
    assert len(list((tmp_path / "cache").glob("split-calibration-*.json"))) == 1
