"""The clock of a split round: what the cost model expects on links that stand still, and its rules."""

from dataclasses import replace
from itertools import takewhile

import numpy as np
import pytest

from airtune.cost import predict
from airtune.cost.split import split_cost
from airtune.engine.air import Air
from airtune.engine.clock import alone
from airtune.engine.split_timing import Crossings, split_round_time
from airtune.errors import MethodError
from airtune.fleet import load_fleet
from airtune.plan import CodecSpec, WorkSpec

STEPS = 3


@pytest.fixture
def cut_plan(plan_of):
    def make(*cuts, steps=STEPS, **changes):
        plan = plan_of(len(cuts), **changes)
        told = replace(
            plan.assignments,
            cut=np.array(cuts),
            codecs=(CodecSpec("topk", keep=0.3, bits=4),),
            local_steps=np.broadcast_to(steps, len(cuts)).copy(),
            share=np.arange(1, len(cuts) + 1) / np.arange(1, len(cuts) + 1).sum(),
        )
        return replace(plan, assignments=told)

    return make


@pytest.fixture
def still(cell):
    del cell["links"]["cell"]["slot_s"]
    cell["links"]["cell"]["radio"]["fading"] = {"model": "none"}
    return cell


def crossings(cost, plan, **changes):
    """What would cross if every payload were as expected."""
    told = plan.assignments
    active = np.arange(told.local_steps.max())[:, None] < told.local_steps
    nobody = np.zeros(len(told), np.bool_)
    expected = Crossings(
        up_bytes=active * cost.up_bytes,
        down_bytes=active * cost.gradient_bytes,
        computed=active.astype(float),
        adapter_up_bytes=cost.adapter_up_bytes,
        adapter_down_bytes=cost.adapter_down_bytes,
        lost=nobody,
        refused=nobody,
        order=np.arange(len(told)),
    )
    return replace(expected, **changes)


@pytest.fixture
def clock(problem_of):
    """Time a plan on a fleet; `changes` are of the crossings, by the expected ones."""

    def run(source, plan, *, server="shared", divide=None, change=None):
        fleet = load_fleet(source, seed=1)
        problem = problem_of(fleet, work=WorkSpec(server=server))
        cost = split_cost(problem, plan.assignments)
        crossed = crossings(cost, plan)
        crossed = replace(crossed, **(change(crossed) if change else {}))
        keep = divide or (lambda links, remaining: plan.assignments.share)
        air = Air(fleet, plan, keep, start_s=0.0, usual_bytes=cost.up_bytes)
        timed = alone(
            split_round_time(
                problem,
                fleet,
                plan,
                air.part(np.arange(len(plan.assignments))),
                cost=cost,
                crossed=crossed,
                faults=[""] * len(plan.assignments),
            )
        )
        return timed, problem, fleet, air

    return run


@pytest.mark.parametrize("server", ["shared", "copies", "sequential"])
def test_on_links_that_stand_still_it_is_what_the_cost_model_predicts(
    clock, cut_plan, still, server
):
    plan = cut_plan(1, 1, 1, 1)
    timed, problem, fleet, _ = clock(still, plan, server=server)
    wanted = predict(
        problem, plan.assignments, links=fleet.links_at(0, 0, 0.0), flops_per_s=fleet.flops_at(0)
    )
    for name in (
        "finish_s",
        "compute_s",
        "upload_s",
        "upload_bytes",
        "download_bytes",
        "flops",
        "peak_bytes",
        "download_s",
    ):
        found, expected = getattr(timed.timing, name), getattr(wanted, name)
        np.testing.assert_allclose(found, expected, rtol=1e-9, err_msg=name)
    assert timed.timing.end_s == pytest.approx(wanted.round_s)
    assert np.sum(timed.step_s) < wanted.round_s


def test_devices_may_take_unlike_numbers_of_steps(clock, cut_plan, still):
    plan = cut_plan(1, 1, 1, steps=np.array([1, 3, 2]))
    timed, problem, fleet, _ = clock(still, plan)
    wanted = predict(
        problem, plan.assignments, links=fleet.links_at(0, 0, 0.0), flops_per_s=fleet.flops_at(0)
    )
    np.testing.assert_allclose(timed.timing.finish_s, wanted.finish_s, rtol=1e-9)
    assert np.all(np.diff(timed.timing.download_bytes[[0, 2, 1]]) > 0)


def test_a_step_is_the_papers_sum_of_slowest_phases(clock, cut_plan, still):
    timed, _, _, _ = clock(still, cut_plan(1, 1, 1))
    first = timed.first
    ((begun, served),) = first.server
    assert begun == first.upload_s.max()
    assert np.ptp(first.download_s) < 1e-9 * first.download_s[0]
    assert timed.step_s[1] == pytest.approx(timed.step_s[2])
    assert served + (first.backward_s - served).max() == pytest.approx(first.backward_s.max())
    assert served - begun == pytest.approx(timed.server_s[0])


def test_who_is_lost_is_not_waited_for(clock, cut_plan, still):
    plan = cut_plan(1, 1, 1)
    slowest = int(np.argmax(clock(still, plan)[0].timing.finish_s))
    who = np.arange(3) == slowest

    def lose(crossed):
        up, down = crossed.up_bytes.copy(), crossed.down_bytes.copy()
        up[1:, slowest], down[0:, slowest] = 0.0, 0.0
        return {"up_bytes": up, "down_bytes": down, "lost": who}

    whole, _, _, _ = clock(still, plan)
    timed, _, _, _ = clock(still, plan, change=lose)
    assert timed.timing.status[slowest] == "absent"
    assert timed.timing.faults[slowest] == "lost between forward and backward in step 0"
    assert np.isnan(timed.timing.finish_s[slowest])
    assert timed.timing.end_s < whole.timing.end_s
    assert timed.timing.upload_bytes[slowest] < 0.5 * whole.timing.upload_bytes[slowest]


def test_a_device_whose_link_is_dead_fails_and_holds_up_nobody(clock, cut_plan, still):
    plan = cut_plan(1, 1, 1)
    told = plan.assignments
    share = told.share.copy()
    share[1] = 0.0
    plan = replace(plan, assignments=replace(told, share=share))
    timed, _, _, _ = clock(still, plan)
    assert timed.timing.status.tolist() == ["ok", "failed", "ok"]
    assert timed.timing.faults[1] == "its link carried nothing in this round"
    assert np.isfinite(timed.timing.end_s)


def test_the_method_is_asked_once_a_slot_and_of_those_at_the_barrier_too(clock, cut_plan, cell):
    plan, asked = cut_plan(1, 1, 1, 1, steps=6), []

    def divide(links, remaining):
        asked.append(remaining)
        return plan.assignments.share

    _, _, _, air = clock(cell, plan, divide=divide)
    assert len(asked) == len(air.shares) - 1 > 3
    stepping = list(takewhile(lambda told: told.max() <= 1e3, asked))  # then adapters are sent
    assert len(stepping) > 10
    assert all(np.all(told > 0) for told in stepping)


def test_shares_that_give_out_more_than_there_is_are_the_methods_fault(clock, cut_plan, cell):
    with pytest.raises(MethodError, match=r"shares of link cell sum to 4"):
        clock(cell, cut_plan(1, 1, 1, 1), divide=lambda links, remaining: np.ones(4))


def test_a_step_that_the_deadline_interrupts_leaves_all_with_the_step_before(clock, cut_plan, cell):
    free, _, _, _ = clock(cell, cut_plan(1, 1, 1))
    limit = 0.4 * free.timing.end_s
    timed, _, _, _ = clock(cell, cut_plan(1, 1, 1, deadline_s=limit))
    assert timed.timing.end_s == limit
    assert np.all(timed.timing.flops <= free.timing.flops)
    assert np.all(timed.timing.upload_bytes <= free.timing.upload_bytes)
    late = timed.timing.status == "late"
    assert late.any()
    assert set(timed.stopped_after[late].tolist()) <= {0, 1}
    first, _, _, _ = clock(cell, cut_plan(1, 1, 1, deadline_s=0.05 * free.timing.end_s))
    assert first.timing.status.tolist() == ["late"] * 3
    assert not first.stopped_after.any()
