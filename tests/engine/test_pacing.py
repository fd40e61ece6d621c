"""What devices say of their own steps is checked; what the simulator's settle on is what fits."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from airtune.cost import predict
from airtune.engine.base import EngineSettings
from airtune.engine.pacing import claimed, let_settle
from airtune.engine.remote.real import RealEngine
from airtune.errors import CodecError
from airtune.fleet import load_fleet
from airtune.model.state import initial_state
from airtune.plan import Assignment, CodecSpec, Pace
from airtune.wire.traffic_budget import TrafficBudget

ROW = Assignment(0, 0.0, 0.0, 8, 0, 1.0, 2, CodecSpec())
PACE = Pace(5.0, ((1.0, 2.0, 3.0), (0.5, 1.0, 1.5)), ((0.0, 0.0, 8), (0.0, 0.5, 4)))


def test_what_a_device_did_is_taken_from_the_arms_it_was_given():
    row = claimed(ROW, PACE, {"arm": 1.0, "steps": 3.0}, computed_s=2.0, after_s=3.0)
    assert (row.rank, row.prune_ffn, row.local_steps) == (4, 0.5, 3)
    assert claimed(ROW, None, {}, computed_s=9.0, after_s=1.0) is ROW


@pytest.mark.parametrize(
    ("figures", "computed_s", "message"),
    [
        ({"arm": 2.0, "steps": 1.0}, 1.0, "arm 2.0 of 2"),
        ({"steps": 1.0}, 1.0, "arm None of 2"),
        ({"arm": 0.0, "steps": 0.0}, 1.0, "0.0 steps, between 1 and 3"),
        ({"arm": 0.0, "steps": 9.0}, 1.0, "9.0 steps, between 1 and 3"),
        ({"arm": 0.0, "steps": float("nan")}, 1.0, "nan steps"),
        ({"arm": 0.0, "steps": 3.0}, 7.0, "3 steps in 7 s, and 3 s have passed"),
        ({"arm": 0.0, "steps": 3.0}, float("nan"), "3 steps in nan s"),
    ],
)
def test_steps_that_its_seconds_cannot_hold_are_refused(figures, computed_s, message):
    with pytest.raises(CodecError, match=message):
        claimed(ROW, PACE, figures, computed_s=computed_s, after_s=3.0)


def test_the_steps_that_fit_are_the_most_that_end_in_time(cell, problem_of, plan_of):
    fleet = load_fleet(cell, seed=1)
    problem, plan = problem_of(fleet), plan_of()
    links, speed = fleet.links_at(0, 0, 0.0), fleet.flops_at(0)

    def finish_s(steps):
        told = replace(plan.assignments, local_steps=np.full(6, steps))
        return predict(problem, told, links=links, flops_per_s=speed).finish_s

    pace = Pace(float(np.median(finish_s(3))), (tuple(range(1, 9)),))
    size = float(
        predict(problem, plan.assignments, links=links, flops_per_s=speed).download_bytes[0]
    )
    known = {"links": links, "flops_per_s": speed, "memory_bytes": fleet.memory_bytes}
    found = let_settle(problem, replace(plan, pace=pace), download_bytes=size, **known)
    table = np.stack([finish_s(steps) for steps in range(1, 9)])
    most = np.maximum((table <= pace.finish_s * (1 + 1e-9)).sum(axis=0), 1)
    assert found.assignments.local_steps.tolist() == most.tolist()
    assert len(set(most.tolist())) > 1
    fits = table[0] <= pace.finish_s
    assert [("fits" in reason) for reason in found.reasons] == fits.tolist()
    assert let_settle(problem, plan, download_bytes=size, **known) is plan


def test_a_round_of_real_devices_is_foreseen_with_the_steps_that_fit(
    cell, base, problem_of, plan_of
):
    fleet = load_fleet(cell, seed=1)
    problem, plan = problem_of(fleet), plan_of()
    remote = SimpleNamespace(traffic_budget=TrafficBudget(None, len(fleet)))
    workers = SimpleNamespace(problem=problem, remote=remote)
    engine = RealEngine(fleet, workers, settings=EngineSettings())
    state = initial_state(base, problem.workload, 0)
    usual_s = engine.prepare(plan, state, 0.0).predicted_s
    pace = Pace(float(np.median(usual_s)), (tuple(range(1, 99)),))
    ready = engine.prepare(replace(plan, pace=pace), state, 0.0)
    fits = usual_s <= pace.finish_s
    assert np.all(ready.predicted_s[fits] <= pace.finish_s)
    assert np.all(ready.predicted_s[fits] >= usual_s[fits])
    assert ready.expected.middle_s > 0
