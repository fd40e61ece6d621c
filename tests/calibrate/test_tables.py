"""What the knobs cost: measured by short runs, stored, and read again, first versions included."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.calibrate import (
    CalibrationSetting,
    from_header,
    load,
    measure_codecs,
    measure_cut,
    measure_pruning,
    measure_ranks,
    measure_steps,
    measure_uploads,
    store,
)
from airtune.calibrate.short import ShortRun, short_run
from airtune.calibrate.tried import Tried, spread_rates
from airtune.errors import CheckpointError
from airtune.plan import CodecSpec, WorkSpec
from airtune.recipe import load_recipe
from airtune.records import read_run
from airtune.run import build_pieces, run_recipe

TINY = [
    "data.limit=60",
    "data.test_limit=10",
    "data.max_length=40",
    "fleet.devices=3",
    "train.local_steps=1",
    "train.per_device_train_batch_size=2",
    "threads=1",
]
FINE, COARSE = CodecSpec("fp16"), CodecSpec("topk", keep=0.02, bits=2)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    pieces = build_pieces(load_recipe(overrides=TINY))
    return CalibrationSetting(
        base=pieces.assets.base,
        data=pieces.assets.data,
        problem=pieces.problem,
        work=WorkSpec(),
        engine=pieces.engine,
        rounds=2,
        devices=2,
        folder=tmp_path_factory.mktemp("short"),
    )


@given(st.floats(0.05, 0.45), st.integers(2, 12), st.integers(0, 50))
def test_rates_have_the_mean_and_start_at_zero(mean, devices, round_number):
    weight = np.arange(1.0, devices + 1)
    weight /= weight.sum()
    rates = spread_rates(mean, weight, 0, round_number)
    assert rates.min() == 0.0
    assert rates.max() <= 0.95
    assert float(rates @ weight) <= mean + 1e-9
    if rates.max() < 0.95:
        assert float(rates @ weight) == pytest.approx(mean)


def test_rates_change_hands_by_round():
    weight = np.full(6, 1 / 6)
    assert not np.array_equal(spread_rates(0.2, weight, 0, 0), spread_rates(0.2, weight, 0, 1))
    assert np.array_equal(spread_rates(0.2, weight, 0, 3), spread_rates(0.2, weight, 0, 3))


def test_a_measurement_repeats(setting):
    first = measure_pruning(setting, (0.3,))
    assert first == measure_pruning(replace(setting, folder=None), (0.3,))
    assert [row.pruned for row in first.pruning] == [0.0, 0.3]
    assert len(first.curve) == 3
    assert "off the clock" in first.source


def test_a_rate_that_prunes_nothing_gives_the_dense_curve(setting):
    runs = [short_run(setting, tried) for tried in (Tried(), Tried(pruned=1e-6))]
    assert runs[0] == runs[1]


def test_a_run_that_is_done_is_read_and_not_run_again(setting, monkeypatch):
    first = short_run(setting, Tried())

    def never(*_args, **_named):
        raise AssertionError

    monkeypatch.setattr("airtune.engine.virtual.VirtualEngine.execute", never)
    assert short_run(setting, Tried()) == first


def test_ranks_and_cuts_are_measured_against_the_whole_model(setting):
    full = setting.problem.workload.rank
    found = measure_ranks(setting)
    assert [row.rank for row in found.ranks] == [full // 8, full // 4, full // 2, full]
    assert found.curve == measure_cut(setting, (1,)).curve
    assert measure_cut(setting, (1,)).measured == {"cut"}


def test_local_steps_are_measured_against_the_recipes(setting):
    usual = setting.problem.workload.local_steps
    found = measure_steps(setting)
    counts = sorted({max(usual // 2, 1), usual, 2 * usual, 4 * usual})
    assert [row.local_steps for row in found.steps] == counts
    assert found.steps[counts.index(usual)].log_rounds == 0.0
    assert found.steps[-1].log_rounds < 0.0  # more is learnt in a round


def test_uploads_are_measured_against_updates_that_are_not_coded(setting):
    usual = setting.problem.workload.upload
    found = measure_uploads(setting, (COARSE, CodecSpec("fp16")))
    assert [row.codec for row in found.uploads] == list(
        dict.fromkeys((CodecSpec(), usual, COARSE, CodecSpec("fp16")))
    )
    assert found.uploads[0].log_rounds == 0.0 <= min(row.log_rounds for row in found.uploads)
    assert 0.3 < found.uploads[-2].scale != 1.0


def test_codecs_cost_in_proportion_to_what_they_lose_at_a_cut(setting):
    found = measure_codecs(setting, (FINE, COARSE), (1, 3))
    assert found.codecs_measured == (FINE, COARSE)
    assert [row.cut for row in found.codecs] == [1, 3, 1, 3]
    assert all(0.0 <= row.loss < 1e-3 for row in found.codecs if row.codec == FINE)
    early, late = (row for row in found.codecs if row.codec == COARSE)
    assert early.loss * late.log_rounds == pytest.approx(late.loss * early.log_rounds)


def test_pruning_stops_where_the_loss_runs_away(setting, monkeypatch):
    losses = {0.0: (4.0, 3.0, 2.0), 0.1: (4.0, 3.2, 2.2), 0.2: (4.0, 4.5, 4.2)}
    asked = []

    def told(_, tried):
        asked.append(tried.pruned)
        return ShortRun(losses[tried.pruned], 1.0)

    monkeypatch.setattr("airtune.calibrate.tables.short_run", told)
    found = measure_pruning(setting, (0.1, 0.2, 0.3, 0.4))
    assert asked == [row.pruned for row in found.pruning] == [0.0, 0.1, 0.2]
    assert found.most_pruned == 0.2, "the largest rate of a device in the last run that went well"
    monkeypatch.setitem(losses, 0.1, (4.0, 4.5, 4.2))
    assert measure_pruning(setting, (0.1, 0.2)).most_pruned == 0.0


def test_what_is_stored_is_read_again(setting, tmp_path):
    found = measure_codecs(setting, (FINE, COARSE), (1, 3))
    assert load(tmp_path / "c.json") is None
    store(tmp_path / "c.json", found)
    assert load(tmp_path / "c.json") == found


@pytest.mark.parametrize("content", ["{", json.dumps({"schema": 99}), json.dumps({"schema": 2})])
def test_damage_is_named(tmp_path, content):
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"c\.json is damaged: .* remove it"):
        load(path)


def test_headers_of_the_first_version_are_read():
    curves = [[4.0, 3.0, 2.0, 1.0], [4.0, 3.5, 3.0, 2.5]]
    same = {"schema": 1, "source": "earlier", "fingerprint": "f", "curves": curves}
    pruned = from_header(
        {
            "calibration": same
            | {
                "budget": [0.0, 0.3],
                "rounds_ratio": [1.0, 2.0],
                "quality_loss": [0.0, 1.5],
                "most": 0.6,
            }
        }
    )
    assert pruned.pruning[1] == (0.3, np.log(2.0), 1.5)
    assert pruned.most_pruned == 0.6
    coded = from_header(
        {
            "split_calibration": same
            | {
                "codecs": [{"kind": "fp16"}],
                "cuts": [1, 3],
                "distortion": [[0.1], [0.3]],
                "quality_loss": [0.2],
            }
        }
    )
    assert coded.codec_loss(2, FINE) == pytest.approx(0.2)
    assert coded.codec_rounds(2, FINE) == pytest.approx(np.log(2.0))
    assert from_header({}) is None
    with pytest.raises(CheckpointError, match="damaged"):
        from_header({"calibration": same})


def test_a_run_measures_once_and_chooses_by_it(tmp_path):
    changes = [
        *TINY,
        f"output={tmp_path}",
        "method.name=sft",
        "method.quality_budget=0.5",
        "train.rounds=1",
        "split.rounds=1",
        "split.devices=2",
        "split.codecs=[{kind: fp16}, {kind: deadzone, step: 2.0}]",
    ]
    recipe = load_recipe(None, overrides=changes)
    run_recipe(recipe, folder=tmp_path / "a", reports=False)
    run_recipe(recipe, folder=tmp_path / "b", reports=False)
    one, other = (read_run(tmp_path / name) for name in "ab")
    assert one.header["measurements"] == other.header["measurements"]
    assert np.all(one.devices["cut"] >= 1)
    assert len(list((tmp_path / "cache").glob("codecs-*.json"))) == 1
