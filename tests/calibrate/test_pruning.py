"""The calibration: curves to ratios, spread of the rates, and a stored measurement."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.calibrate import Measured, Setting, calibrate_pruning, load, store
from airtune.calibrate.pruning import read_curves, runs_away, spread_rates
from airtune.errors import CheckpointError
from airtune.plan import WorkSpec
from airtune.recipe import load_recipe
from airtune.run import build_pieces

TINY = ["data.limit=60", "data.test_limit=10", "data.max_length=40", "fleet.devices=3",
        "train.local_steps=1", "train.per_device_train_batch_size=2", "threads=1"]  # fmt: skip


def exponential(rate, rounds=8):
    return tuple(float(1 + 4 * np.exp(-rate * number)) for number in range(rounds + 1))


@given(st.floats(0.1, 1.0))
def test_a_curve_twice_as_slow_needs_twice_the_rounds(rate):
    found = read_curves((0.0, 0.3), (exponential(rate), exponential(rate / 2)), "example")
    assert found.rounds_ratio[1] == pytest.approx(2.0, rel=0.1)


def test_no_loss_of_quality_is_a_ratio_of_one():
    same = exponential(0.3)
    found = read_curves((0.0, 0.2, 0.4), (same, same, same), "example")
    assert found.rounds_ratio.tolist() == [1.0, 1.0, 1.0]
    assert found.quality_loss.tolist() == [0.0, 0.0, 0.0]


def test_better_with_pruning_counts_as_free_and_ratios_never_fall():
    curves = (exponential(0.3), exponential(0.2), exponential(0.4))
    found = read_curves((0.0, 0.2, 0.4), curves, "example")
    assert np.all(np.diff(found.rounds_ratio) >= 0)
    assert np.all(np.diff(found.quality_loss) >= 0)
    assert found.rounds_ratio[0] == 1.0


def test_no_progress_at_all_gets_the_worst_ratio():
    flat = (5.0,) * 9
    assert read_curves((0.0, 0.3), (exponential(0.3), flat), "example").rounds_ratio[
        1
    ] == pytest.approx(10.0)


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


@pytest.fixture(scope="module")
def setting():
    pieces = build_pieces(load_recipe(overrides=TINY))
    return Setting(
        base=pieces.assets.base, data=pieces.assets.data, problem=pieces.problem, work=WorkSpec(),
        engine=pieces.engine, rounds=2, devices=2,
    )  # fmt: skip


def test_a_measurement_repeats_and_reads_back(setting, tmp_path):
    first, again = (calibrate_pruning(setting, (0.3,)) for _ in range(2))
    assert first.curves == again.curves
    assert len(first.curves) == 2
    assert first.curves[0][0] == first.curves[1][0], "both begin at the untuned model"
    assert first.device_s > 0
    store(tmp_path / "cache" / "c.json", first)
    read = load(tmp_path / "cache" / "c.json")
    assert isinstance(read, Measured)
    assert read.curves == first.curves
    assert read.calibration.most == first.calibration.most
    assert read.calibration.rounds_ratio.tolist() == first.calibration.rounds_ratio.tolist()
    assert "off the clock" in read.calibration.source


def test_the_calibration_stops_where_the_loss_runs_away(setting, monkeypatch):
    losses = {0.0: (4.0, 3.0, 2.0), 0.1: (4.0, 3.2, 2.2), 0.2: (4.0, 4.5, 4.2)}
    asked = []

    def short_runs(_, data, deciders):
        for decider in deciders:
            asked.append(decider.mean)
            yield losses[decider.mean], 1.0

    monkeypatch.setattr("airtune.calibrate.pruning.short_runs", short_runs)
    found = calibrate_pruning(setting, (0.1, 0.2, 0.3, 0.4)).calibration
    assert asked == [0.0, 0.1, 0.2]
    assert found.budget.tolist() == [0.0, 0.1, 0.2]
    assert found.most == 0.2, "the largest rate of a device in the last run that went well"
    monkeypatch.setitem(losses, 0.1, (4.0, 4.5, 4.2))
    assert calibrate_pruning(setting, (0.1, 0.2)).calibration.most == 0.0


def test_a_model_that_learns_nothing_says_nothing_of_pruning():
    assert not runs_away((4.0, 4.0, 4.1), (4.0, 4.2, 4.3))


def test_the_dense_run_prunes_nothing(setting):
    """A budget so small that every rate rounds to the dense level gives the dense curve."""
    found = calibrate_pruning(setting, (1e-6,))
    assert found.curves[0] == found.curves[1]


def test_nothing_stored_is_none_and_damage_is_named(tmp_path):
    path = tmp_path / "c.json"
    assert load(path) is None
    for content in ("{", json.dumps({"schema": 99}), json.dumps({"schema": 1})):
        path.write_text(content)
        with pytest.raises(CheckpointError, match=r"c\.json is damaged: .* remove it"):
            load(path)
