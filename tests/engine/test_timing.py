from dataclasses import replace

import numpy as np
import pytest

from airtune.cost import predict
from airtune.engine.timing import time_round
from airtune.errors import MethodError
from airtune.fleet import load_fleet
from airtune.fleet.rates import uplink_bps

NOBODY = np.zeros(6, np.bool_)


@pytest.fixture
def still(cell):
    """The same cell, standing still within a round."""
    cell["links"]["cell"]["radio"]["fading"]["every"] = "round"
    del cell["links"]["cell"]["slot_s"]
    return load_fleet(cell, seed=1)


@pytest.fixture
def fading(cell):
    return load_fleet(cell, seed=1)


def test_on_links_that_stand_still_the_clock_is_the_cost_model(still, problem_of, plan_of, keep):
    problem, plan = problem_of(still), plan_of(prune=0.5)
    timing = time_round(problem, still, plan, keep(plan), start_s=7.0, dropped=NOBODY)
    cost = predict(
        problem, plan.assignments, links=still.links_at(0, 0, 7.0), flops_per_s=still.flops_at(0)
    )
    for name in (
        "download_s",
        "compute_s",
        "upload_s",
        "finish_s",
        "download_bytes",
        "upload_bytes",
        "flops",
        "peak_bytes",
    ):
        assert getattr(timing, name) == pytest.approx(getattr(cost, name), rel=1e-9), name
    assert timing.end_s == pytest.approx(cost.round_s)
    assert timing.status.tolist() == ["ok"] * 6
    assert timing.bandwidth_hz == pytest.approx(np.full(6, 2e4 / 6))


def test_bytes_that_crossed_the_air_are_the_rate_over_the_slots(fading, problem_of, plan_of, keep):
    problem, plan = problem_of(fading), plan_of()
    timing = time_round(problem, fading, plan, keep(plan), start_s=0.0, dropped=NOBODY)
    device, slot_s = 2, fading.slot_s
    begin, end = timing.finish_s[device] - timing.upload_s[device], timing.finish_s[device]
    bits = 0.0
    for slot in range(int(end / slot_s) + 1):
        overlap = min(end, (slot + 1) * slot_s) - max(begin, slot * slot_s)
        links = fading.links_at(0, slot, slot * slot_s)
        bits += max(overlap, 0.0) * uplink_bps(links, plan.assignments.share)[device]
    assert end - begin > 3 * slot_s
    assert bits / 8 == pytest.approx(timing.upload_bytes[device], rel=1e-6)


def test_divide_is_asked_at_each_slot_edge_and_obeyed(fading, problem_of, plan_of, keep):
    problem, plan, asked = problem_of(fading), plan_of(), []

    def all_to_who_is_left(links, remaining):
        asked.append((links.up_signal_hz.copy(), remaining.copy()))
        return (remaining > 0) / max(np.sum(remaining > 0), 1)

    kept = time_round(problem, fading, plan, keep(plan), start_s=0.0, dropped=NOBODY)
    moved = time_round(problem, fading, plan, all_to_who_is_left, start_s=0.0, dropped=NOBODY)
    assert moved.end_s < kept.end_s
    left = np.array([remaining for _, remaining in asked])
    assert np.all(np.diff(left, axis=0) <= 0)
    assert not np.array_equal(asked[0][0], asked[1][0])


def test_divide_may_not_give_out_more_than_the_link_has(fading, problem_of, plan_of):
    with pytest.raises(MethodError, match="link cell sum to 6"):
        time_round(
            problem_of(fading),
            fading,
            plan_of(),
            lambda links, remaining: np.ones(6),
            start_s=0.0,
            dropped=NOBODY,
        )


def test_late_devices_stop_at_the_deadline_and_are_charged_until_then(
    fading, problem_of, plan_of, keep
):
    problem, plan = problem_of(fading), plan_of()
    free = time_round(problem, fading, plan, keep(plan), start_s=0.0, dropped=NOBODY)
    deadline_s = float(np.median(free.finish_s))
    plan = plan_of(deadline_s=deadline_s)
    timing = time_round(problem, fading, plan, keep(plan), start_s=0.0, dropped=NOBODY)
    late = free.finish_s > deadline_s
    assert timing.status[late].tolist() == ["late"] * 3
    assert timing.status[~late].tolist() == ["ok"] * 3
    assert timing.end_s == deadline_s
    assert np.all(np.isnan(timing.finish_s[late]))
    assert np.all(timing.upload_bytes[late] < free.upload_bytes[late])
    spent = timing.download_s + timing.compute_s + timing.upload_s
    assert spent[late] == pytest.approx(np.full(3, deadline_s))
    assert "deadline" in timing.faults[int(np.flatnonzero(late)[0])]


def test_the_deadline_of_the_problem_holds_where_the_plan_has_none(
    fading, problem_of, plan_of, keep
):
    plan = plan_of()
    timing = time_round(
        problem_of(fading, deadline_s=1e-3), fading, plan, keep(plan), start_s=0.0, dropped=NOBODY
    )
    assert timing.status.tolist() == ["late"] * 6
    assert timing.end_s == 1e-3
    assert all("deadline of 0.001 s; it needs about" in text for text in timing.faults)


def test_a_device_without_the_memory_gives_up_at_once(cell, problem_of, plan_of, keep):
    cell["devices"][0]["memory_gib"] = 1e-5
    fleet, plan = load_fleet(cell, seed=1), plan_of()
    timing = time_round(problem_of(fleet), fleet, plan, keep(plan), start_s=0.0, dropped=NOBODY)
    assert timing.status.tolist() == ["failed"] * 6
    assert timing.faults[0].startswith("out of memory: needs ")
    assert (timing.end_s, timing.upload_bytes.sum()) == (0.0, 0.0)
    assert np.all(timing.peak_bytes > fleet.memory_bytes)


def test_pruning_can_make_it_fit(cell, problem_of, plan_of, keep):
    plain = load_fleet(cell, seed=1)
    plan = plan_of()
    peak = time_round(problem_of(plain), plain, plan, keep(plan), start_s=0.0, dropped=NOBODY)
    cell["devices"][0]["memory_gib"] = float(peak.peak_bytes[0] * 0.9 / 1024**3)
    fleet, pruned = load_fleet(cell, seed=1), plan_of(prune=0.5)
    for plan, status in ((plan_of(), "failed"), (pruned, "ok")):
        timing = time_round(problem_of(fleet), fleet, plan, keep(plan), start_s=0.0, dropped=NOBODY)
        assert set(timing.status.tolist()) == {status}


def test_a_device_that_drops_out_is_missed_when_it_would_have_sent(
    still, problem_of, plan_of, keep
):
    dropped = np.arange(6) == 4
    plan = plan_of()
    timing = time_round(problem_of(still), still, plan, keep(plan), start_s=0.0, dropped=dropped)
    assert timing.status[4] == "absent"
    assert timing.upload_bytes[4] == 0.0
    others = np.delete(timing.finish_s, 4)
    assert timing.end_s == max(others.max(), timing.download_s[4] + timing.compute_s[4])


def test_a_device_without_any_rate_fails_and_does_not_hold_up_the_round(
    still, problem_of, plan_of, keep
):
    plan = plan_of()
    share = plan.assignments.share.copy()
    share[1] = 0.0
    plan = replace(plan, assignments=replace(plan.assignments, share=share))
    timing = time_round(problem_of(still), still, plan, keep(plan), start_s=0.0, dropped=NOBODY)
    assert timing.status.tolist() == ["ok", "failed", "ok", "ok", "ok", "ok"]
    assert "carried nothing" in timing.faults[1]
    assert timing.end_s == np.nanmax(timing.finish_s)
