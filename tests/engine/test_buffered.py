"""Asynchronous rounds end with the K-th update, count others later, and resume as if never stopped."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from airtune.engine.base import Execution
from airtune.engine.buffered import BufferedEngine, _packed, _unpacked
from airtune.errors import RecipeError
from airtune.model.kept import keep_all
from airtune.model.state import GlobalState, Update
from airtune.plan import Observation, Results, RoundPlan, whole_model
from airtune.planner.sample import buffered_s
from airtune.recipe import load_recipe
from airtune.records import read_run
from airtune.run import choose_method, load_assets, resume_run, run_recipe

TINY = [
    "data.limit=60",
    "data.test_limit=8",
    "data.max_length=40",
    "fleet.devices=4",
    "train.rounds=4",
    "train.local_steps=1",
    "train.per_device_train_batch_size=2",
    "threads=1",
    "method.name=fedavg-lora",
]
TAKES_S = np.array([1.0, 2.5, 4.0])


class Timed:
    """An engine whose devices take a fixed time each and send a tensor of ones on top."""

    def __init__(self, problem, *, failing=()):
        self._problem, self._failing = problem, failing
        self.shares = []

    def observe(self, round, time_s):
        free = np.ones(len(TAKES_S), np.bool_)
        return Observation(round, time_s, None, free, None)

    def execute(self, plan, state, divide, *, start_s):
        told, device = plan.assignments, plan.assignments.device
        self.shares.append(dict(zip(device.tolist(), told.share.tolist(), strict=True)))
        ok = ~np.isin(device, self._failing)
        zero = np.zeros(len(device))
        finish = np.where(ok, TAKES_S[device], np.nan)
        results = Results(
            zero,
            zero,
            zero,
            finish,
            zero,
            zero,
            zero,
            zero,
            device,
            np.where(ok, "ok", "failed"),
            zero,
            zero,
            zero.astype(np.int64),
            zero,
            zero,
            rank_left=told.rank,
        )
        updates = tuple(
            Update(
                int(one),
                plan.round,
                keep_all(self._problem.shape),
                self._problem.workload.rank,
                {name: item + 1.0 for name, item in state.adapters.items()},
                {},
                1,
            )
            for one in device[ok]
        )
        return Execution(
            results, updates, state, start_s, start_s + 9.0, zero, zero, ("",) * len(device)
        )

    def snapshot(self):
        return {}

    def restore(self, arrays):
        assert not arrays


@pytest.fixture
def problem():
    from airtune.methods import sample_problem

    return sample_problem(devices=3)


@pytest.fixture
def state(problem):
    from airtune.model.lora import init_adapters

    return GlobalState(0, init_adapters(problem.shape, problem.workload, 0), {})


def play(engine, problem, state, *, rounds, first=0, start_s=0.0):
    """Run rounds in which every update moves the state by its mean; yield what came of each."""
    for number in range(first, first + rounds):
        device = np.flatnonzero(engine.observe(number, start_s).available)
        told = whole_model(
            device,
            rank=problem.workload.rank,
            local_steps=1,
            share=np.full(len(device), 1.0 / len(device)),
        )
        plan = RoundPlan(number, told, ("",) * len(device))
        done = engine.execute(plan, state, None, start_s=start_s)
        if done.updates:
            moved = {
                name: torch.stack([update.adapters[name] for update in done.updates]).mean(0)
                for name in state.adapters
            }
            state = replace(state, adapters=moved)
        start_s = done.end_s
        yield done, state


def test_a_round_ends_with_the_kth_update_of_whomever(problem, state) -> None:
    engine = BufferedEngine(Timed(problem), problem, buffer=1)
    seen = [
        (done.end_s, done.results.device.tolist())
        for done, _ in play(engine, problem, state, rounds=6)
    ]
    # device 0 arrives each second, 1 each 2.5 s and 2 each 4 s, as each begins when it has arrived
    assert seen == [(1.0, [0]), (2.0, [0]), (2.5, [1]), (3.0, [0]), (4.0, [0]), (4.0, [2])]


def test_two_that_arrive_end_a_round_of_two(problem, state) -> None:
    engine = BufferedEngine(Timed(problem), problem, buffer=2)
    done = [item for item, _ in play(engine, problem, state, rounds=2)]
    assert [item.end_s for item in done] == [2.5, 4.0]
    assert done[1].results.device.tolist() == [0, 2]
    assert done[1].buffered == {
        "staleness": {problem.devices.names[0]: 0, problem.devices.names[2]: 1},
        "in_flight": 1,
    }


def test_a_stale_update_is_its_change_by_the_root_of_its_age(problem, state) -> None:
    engine = BufferedEngine(Timed(problem), problem, buffer=1)
    name = next(iter(state.adapters))
    before = state.adapters[name]
    moves = []
    for _, after in play(engine, problem, state, rounds=6):
        moves.append(float((after.adapters[name] - before).mean()))
        before = after.adapters[name]
    ages = [0, 0, 2, 1, 0, 5]
    assert moves == pytest.approx([1 / math.sqrt(1 + age) for age in ages], rel=1e-5)


def test_who_is_told_anew_divides_what_is_free_of_the_link(problem, state) -> None:
    inner = Timed(problem)
    devices = replace(problem.devices, link=np.zeros(3, np.int64), dedicated=None)
    shared = replace(problem, devices=devices)
    list(play(BufferedEngine(inner, shared, buffer=1), shared, state, rounds=3))
    assert inner.shares[0] == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3})
    assert inner.shares[1] == inner.shares[2] == pytest.approx({0: 1 / 3})


def test_a_device_that_fails_fills_no_buffer_and_begins_anew(problem, state) -> None:
    engine = BufferedEngine(Timed(problem, failing=(0,)), problem, buffer=1)
    done = [item for item, _ in play(engine, problem, state, rounds=2)]
    assert [item.end_s for item in done] == [2.5, 4.0]
    assert done[0].results.status.tolist() == ["failed", "ok"]


def test_what_is_in_flight_is_in_the_snapshot(problem, state) -> None:
    engine = BufferedEngine(Timed(problem), problem, buffer=1)
    *_, (_, after) = play(engine, problem, state, rounds=2)
    other = BufferedEngine(Timed(problem), problem, buffer=1)
    other.restore(engine.snapshot())
    rest = [
        [
            (
                done.end_s,
                done.results.device.tolist(),
                float(next(iter(now.adapters.values())).sum()),
            )
            for done, now in play(each, problem, after, rounds=4, first=2, start_s=2.0)
        ]
        for each in (engine, other)
    ]
    assert rest[0] == rest[1]
    assert _unpacked(_packed([])) == []


@pytest.fixture(scope="module")
def assets():
    return load_assets(load_recipe(overrides=TINY))


def rounds_of(folder):
    return [
        {key: value for key, value in row.items() if key != "measured"}
        for row in read_run(folder).rounds
    ]


def test_a_buffer_for_all_is_a_synchronous_run(assets, tmp_path) -> None:
    for name, buffer in (("a", 0), ("b", 4)):
        asked = load_recipe(overrides=[*TINY, f"train.async_buffer={buffer}", "train.rounds=2"])
        run_recipe(asked, folder=tmp_path / name, assets=assets, reports=False)
    for one, other in zip(rounds_of(tmp_path / "a"), rounds_of(tmp_path / "b"), strict=True):
        assert one["end_s"] == pytest.approx(other["end_s"])
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
        assert one["validation"]["loss"] == pytest.approx(other["validation"]["loss"], rel=1e-4)


def test_an_asynchronous_run_that_stops_goes_on_as_if_it_had_not(assets, tmp_path) -> None:
    asked = load_recipe(overrides=[*TINY, "train.async_buffer=1"])
    run_recipe(asked, folder=tmp_path / "a", assets=assets, reports=False)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "result.json").unlink()
    shutil.rmtree(tmp_path / "b" / "checkpoint" / "round-000004")
    resume_run(tmp_path / "b", assets=assets, reports=False)
    assert rounds_of(tmp_path / "a") == rounds_of(tmp_path / "b")
    assert any(max(row["buffered"]["staleness"].values()) > 0 for row in rounds_of(tmp_path / "a"))


@pytest.mark.parametrize(
    ("name", "why"),
    [("splitlora", "cuts the model"), ("flora", "new axes every round"), ("fedspine", "deadline")],
)
def test_what_needs_a_round_together_is_refused(name, why) -> None:
    asked = load_recipe(overrides=[f"method.name={name}", "train.async_buffer=2"])
    with pytest.raises(RecipeError, match=rf"train\.async_buffer cannot be used with .*{why}"):
        choose_method(asked)


def test_a_planned_round_is_the_mean_time_in_which_the_buffer_fills() -> None:
    # in 20 s the devices arrive 20, 8 and 5 times
    assert buffered_s(TAKES_S, 1) == pytest.approx(20 / (20 + 8 + 5))
