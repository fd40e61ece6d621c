"""The loop with a decider of its own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.loop.training import DEVICES, FLEET, ROUNDS, Wanderer, make_run, train

from airtune.engine.checkpoint import load_checkpoint
from airtune.errors import MethodError, RecipeError, TrainingError
from airtune.loop import LoopSettings, Target, begin, run_rounds
from airtune.records import read_run


def test_a_round_is_recorded_as_it_was_planned_and_executed(whole):
    record = read_run(whole)
    first = record.rounds[0]
    assert [line["round"] for line in record.rounds] == [0, 1, 2]
    assert first["solution"]["status"] == "heuristic"
    assert first["initial"]["loss"] > 0
    assert first["counts"]["ok"] == len(record.devices["device"][record.devices["round"] == 0])
    for line, before in zip(record.rounds[1:], record.rounds, strict=False):
        assert line["start_s"] >= before["end_s"]
    rows = record.devices["round"] == 0
    sent = record.devices["upload_bytes"][rows].sum() + first["setup"]["upload_bytes"]
    assert first["upload_bytes"] == pytest.approx(sent)
    assert set(record.devices["reason"][rows]) == set(first["reasons"])
    parts = first["measured"]
    assert set(parts) == {"plan_s", "tasks_s", "aggregation_s", "validation_s", "wall_s"}
    assert sum(parts.values()) == pytest.approx(2 * parts["wall_s"])


def test_training_lowers_the_loss_and_the_result_says_so(whole):
    results = read_run(whole).results
    assert results["validation_best"]["loss"] < results["initial"]["loss"]
    assert results["test"]["loss"] > 0
    assert results["rounds"] == ROUNDS


def test_the_learning_rate_falls_linearly_over_the_budget(tmp_path):
    run, state = make_run(tmp_path / "run", loop=LoopSettings(decay=0.25))
    seen = []
    execute = run.engine.execute
    run.engine.execute = lambda plan, *rest, **more: (
        seen.append(plan.learning_rate) or execute(plan, *rest, **more)
    )
    run_rounds(run, begin(run, state))
    assert seen == pytest.approx([1.0 - 0.75 * round / ROUNDS for round in range(ROUNDS)])


def test_no_round_begins_after_the_seconds_of_the_run(whole, tmp_path):
    rounds = read_run(whole).rounds
    budget_s = 0.5 * (rounds[0]["end_s"] + rounds[1]["end_s"])
    run, state = make_run(tmp_path / "run", loop=LoopSettings(evaluate_every=9))
    run = replace(run, problem=replace(run.problem, seconds=budget_s))
    run_rounds(run, begin(run, state))
    record = read_run(tmp_path / "run")
    assert [row["end_s"] for row in record.rounds] == [row["end_s"] for row in rounds[:2]]
    assert record.rounds[-1]["validation"] is not None


def test_a_run_stops_at_its_target(tmp_path):
    settings = LoopSettings(target=Target("loss", 100.0), stop_at_target=True)
    result = train(tmp_path / "run", loop=settings)
    assert result.rounds == 1
    assert result.results["target_reached"]["round"] == 0


def test_a_target_is_noted_where_the_run_goes_on(tmp_path):
    settings = LoopSettings(target=Target("loss", 100.0, window=2))
    result = train(tmp_path / "run", loop=settings)
    assert (result.rounds, result.results["target_reached"]["round"]) == (ROUNDS, 1)


def test_a_target_that_is_not_measured_is_an_error_of_the_recipe(tmp_path):
    with pytest.raises(RecipeError, match="'accuracy' is not measured on this task"):
        train(tmp_path / "run", loop=LoopSettings(target=Target("accuracy", 0.5)))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"metric": "bleu", "value": 1.0}, "got 'bleu'"),
        ({"metric": "loss", "value": float("nan")}, "got nan"),
    ],
)
def test_a_target_out_of_range_is_refused(target, message):
    with pytest.raises(RecipeError, match=message):
        Target(**target)


def test_evaluation_every_other_round_includes_the_last(tmp_path):
    train(tmp_path / "run", loop=LoopSettings(evaluate_every=2))
    seen = [line["validation"] is not None for line in read_run(tmp_path / "run").rounds]
    assert seen == [False, True, True]


def test_a_state_that_was_judged_is_not_judged_again_where_no_bytes_are_left(tmp_path, monkeypatch):
    run, state = make_run(tmp_path / "run", loop=LoopSettings(evaluate_every=2))
    monkeypatch.setattr(
        run.engine,
        "over_cap",
        lambda plan, state: ("used up" if plan.round else "",) * len(plan.assignments),
    )
    run_rounds(run, begin(run, state))
    record = read_run(tmp_path / "run")
    assert [line["counts"]["ok"] > 0 for line in record.rounds] == [True, False, False]
    assert [line["validation"] is not None for line in record.rounds] == [False, True, False]


def test_rounds_that_give_nothing_keep_the_state_until_patience_ends(tmp_path):
    run, state = make_run(
        tmp_path / "run",
        rounds=9,
        learning_rate=1e30,
        max_grad_norm=0.0,
        loop=LoopSettings(patience=3),
    )
    with pytest.raises(TrainingError, match="no device returned a usable update in 3 rounds"):
        run_rounds(run, begin(run, state))
    record = read_run(tmp_path / "run")
    assert len(record.rounds) == 3
    assert set(record.devices["status"]) == {"refused"}
    saved = load_checkpoint(tmp_path / "run" / "checkpoint", identity="me")
    kept = saved.state
    assert kept.round == 3
    assert all(torch.equal(kept.adapters[name], state.adapters[name]) for name in state.adapters)
    with pytest.raises(TrainingError, match=r"in 3 rounds in a row.*--resume"):
        run_rounds(run, saved)  # who goes on is given as many rounds again
    assert len(read_run(tmp_path / "run").rounds) == 6


def test_a_round_without_a_device_passes_and_is_recorded(tmp_path):
    nobody = {**FLEET, "devices": [{**FLEET["devices"][0], "availability": 0.0}]}
    result = train(tmp_path / "run", fleet=nobody)
    record = read_run(tmp_path / "run")
    assert result.time_s == 60.0 * ROUNDS
    assert record.rounds[1]["reasons"] == ["no device was available"]
    assert len(record.devices["device"]) == 0


class Blind(Wanderer):
    """Knows nothing, and so never divides."""

    needs = frozenset()

    def init(self, problem):
        assert problem.devices.flops_per_s is None
        assert problem.devices.transmit_power_w is None
        return super().init(problem)

    def plan(self, problem, state, observation):
        assert observation.links is None
        assert problem.devices.memory_bytes is None
        return super().plan(problem, state, observation)

    def divide(self, *_):
        raise AssertionError("a method blind to the channel was shown it")


def test_a_method_sees_only_what_it_asked_for(tmp_path):
    assert train(tmp_path / "run", decider=Blind()).rounds == ROUNDS


class Careless(Wanderer):
    """Plans for devices that are not there."""

    def plan(self, problem, state, observation):
        everyone = replace(observation, available=np.ones(DEVICES, bool))
        return super().plan(problem, state, everyone)


def test_a_plan_for_an_absent_device_is_an_error_of_the_method(tmp_path):
    with pytest.raises(MethodError, match="not available in round"):
        train(tmp_path / "run", decider=Careless())
