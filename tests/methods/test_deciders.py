from dataclasses import replace

import numpy as np
import pytest

from airtune.cost import ladder, predict
from airtune.errors import InfeasibleError, MethodError, RecipeError
from airtune.methods import build_method, sample_problem
from airtune.methods.contract import sample_observation
from airtune.plan import Measurements, PrunedRounds

PRUNERS = ["jcpba", "uniform-prune", "uniform-prune-bandwidth", "prune-equal-bandwidth", "random"]


def plan_of(name, problem, observation, **settings):
    return build_method(name, settings).decider.plan(problem, {}, observation)[0]


def mean_pruned(problem, plan):
    weight = problem.devices.weight[plan.assignments.device]
    rate = problem.shape.pruned_fraction(plan.assignments.prune_heads, plan.assignments.prune_ffn)
    return float(np.sum(weight * rate) / weight.sum())


@pytest.fixture(scope="session")
def all_there(problem):
    return replace(sample_observation(problem, 0), available=np.ones(9, bool))


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("budget", [0.1, 0.3])
def test_the_budget_is_kept_after_rounding(problem, all_there, name, budget):
    assert mean_pruned(problem, plan_of(name, problem, all_there, budget=budget)) <= budget + 1e-9


@pytest.mark.parametrize("name", PRUNERS)
def test_fractions_are_levels_of_the_ladder(problem, all_there, name):
    steps = ladder(problem.shape, problem.workload)
    told = plan_of(name, problem, all_there, budget=0.3).assignments
    pairs = set(zip(steps.prune_heads, steps.prune_ffn, strict=True))
    assert set(zip(told.prune_heads, told.prune_ffn, strict=True)) <= pairs


@pytest.mark.parametrize("seed", range(4))
def test_jcpba_is_never_slower_than_any_control_at_the_same_budget(seed):
    problem = sample_problem(seed=seed)
    seen = replace(sample_observation(problem, 0), available=np.ones(9, bool))
    best = plan_of("jcpba", problem, seen, budget=0.3).predicted_s
    controls = [plan_of(name, problem, seen, budget=0.3).predicted_s for name in PRUNERS[1:]]
    controls += [plan_of("best-bandwidth", problem, seen).predicted_s]
    controls += [
        plan_of("jcpba", problem, seen, budget=0.3, solver="bcd", bcd_start=start).predicted_s
        for start in ("bandwidth-first", "pruning-first")
    ]
    assert best <= min(controls) * 1.02


def test_jcpba_quotes_gaps_before_and_after_rounding(problem, all_there):
    exact = plan_of("jcpba", problem, all_there, budget=0.3).solution
    assert exact.status == "optimal"
    assert exact.gap <= 1e-8 <= exact.gap_rounded < 0.2
    descent = plan_of("jcpba", problem, all_there, budget=0.3, solver="bcd").solution
    assert descent.status == "stalled"
    assert descent.gap >= -1e-9
    assert descent.gap_rounded >= exact.gap_rounded - 1e-9


def test_the_objective_is_the_predicted_round(problem, all_there):
    plan = plan_of("jcpba", problem, all_there, budget=0.3)
    cost = predict(
        problem, plan.assignments, links=all_there.links, flops_per_s=all_there.flops_per_s
    )
    assert plan.predicted_s == pytest.approx(cost.round_s)
    assert plan.solution.objective == pytest.approx(cost.round_s, rel=1e-9)


def measured(*ratios):
    rows = zip((0.0, 0.2, 0.5), np.log(ratios), strict=True)
    return Measurements("", "made up", pruning=tuple(PrunedRounds(*row) for row in rows))


def test_a_calibration_that_says_pruning_costs_much_means_no_pruning(problem, all_there):
    plan = plan_of("jcpba", replace(problem, measurements=measured(1.0, 50.0, 200.0)), all_there)
    steps = ladder(problem.shape, problem.workload)
    memory = problem.devices.memory_bytes[plan.assignments.device]
    forced = [steps.prune_ffn[np.argmax(steps.peak_bytes <= limit)] for limit in memory]
    assert plan.assignments.prune_ffn == pytest.approx(np.array(forced))
    plan = plan_of("jcpba", replace(problem, measurements=measured(1.0, 1.0, 1.0)), all_there)
    assert mean_pruned(problem, plan) > 0.2


def test_without_calibration_nothing_is_pruned_and_the_reason_says_so(problem, all_there):
    plan = plan_of("jcpba", replace(problem, measurements=None), all_there)
    assert "pruning cost not measured" in plan.reasons[0]
    assert np.count_nonzero(plan.assignments.prune_ffn) == 1  # memory of sample-5


def test_a_quality_budget_becomes_a_rate(problem, all_there):
    plan = plan_of("jcpba", problem, all_there, quality_budget=0.02)
    assert plan.notes["budget"] == pytest.approx(0.3)
    with pytest.raises(RecipeError, match="needs a calibration"):
        plan_of("jcpba", replace(problem, measurements=None), all_there, quality_budget=0.02)


def test_a_device_that_fits_nothing_is_named(problem, all_there):
    memory = problem.devices.memory_bytes.copy()
    memory[3] = 1000.0
    tiny = replace(problem, devices=replace(problem.devices, memory_bytes=memory))
    for name in (*PRUNERS, "best-bandwidth"):
        with pytest.raises(InfeasibleError, match="device sample-3 has 1000 B of memory"):
            plan_of(name, tiny, all_there)


def test_memory_sets_the_least_pruning(problem, all_there):
    steps = ladder(problem.shape, problem.workload)
    for name in (*PRUNERS, "best-bandwidth"):
        told = plan_of(name, problem, all_there).assignments
        level = np.searchsorted(steps.prune_ffn, told.prune_ffn[5])
        assert steps.peak_bytes[level] <= problem.devices.memory_bytes[5]


@pytest.mark.parametrize("name", [*PRUNERS, "best-bandwidth"])
def test_a_device_in_an_outage_holds_no_share_until_it_can_send(
    name, problem, observation, all_there
):
    decider = build_method(name, {}).decider
    plan, state = decider.plan(problem, decider.init(problem), observation)
    told = plan.assignments
    row = int(np.flatnonzero(told.device == 7)[0])
    assert (
        plan.reasons[row]
        == "sample-7: no rate in this slot; gets a share of air when its rate is above 0"
    )
    assert np.isfinite(plan.predicted_s)
    assert told.share[row] == 0.0
    left = np.full(len(told), 1e5)
    air = observation.links.link[told.device] == observation.links.link[7]
    assert told.share[air].sum() == pytest.approx(1.0)
    later = decider.divide(problem, state, plan, all_there.links, left)
    assert later[row] > 0.0
    assert later[air].sum() == pytest.approx(1.0)
    kept = decider.divide(problem, state, plan, observation.links, left)
    assert np.array_equal(kept, told.share)


def test_nobody_there_is_an_empty_plan(problem, all_there):
    nobody = replace(all_there, available=np.zeros(9, bool))
    for name in ("fedavg-lora", *PRUNERS, "best-bandwidth"):
        assert len(plan_of(name, problem, nobody).assignments) == 0


def test_all_silent_still_plans(problem, observation):
    dead = replace(
        observation.links,
        up_signal_hz=observation.links.up_signal_hz * 0.0,
        up_capacity_bps=observation.links.up_capacity_bps * 0.0,
    )
    for name in (*PRUNERS, "best-bandwidth"):
        plan = plan_of(name, problem, replace(observation, links=dead))
        assert np.isnan(plan.predicted_s)


def test_a_rule_that_forgot_to_ask_is_told(problem, observation):
    with pytest.raises(MethodError, match="add 'channel' to its needs"):
        plan_of("jcpba", problem, replace(observation, links=None))


def test_fedavg_gives_dedicated_links_whole_and_shared_ones_evenly(problem, all_there):
    share = plan_of("fedavg-lora", problem, all_there).assignments.share
    assert share[problem.devices.link == 2].tolist() == [1.0, 1.0, 1.0]
    assert share[problem.devices.link == 0] == pytest.approx(np.full(3, 1 / 3))


def test_random_draws_anew_each_round_and_the_same_again(problem):
    one, two = sample_observation(problem, 2), sample_observation(problem, 3)
    first, again = plan_of("random", problem, one), plan_of("random", problem, one)
    assert first.assignments.share.tolist() == again.assignments.share.tolist()
    other = plan_of("random", problem, replace(two, available=one.available))
    assert first.assignments.share.tolist() != other.assignments.share.tolist()


def test_large_fleets_are_planned_in_columns():
    problem = sample_problem(devices=2000)
    plan = plan_of("jcpba", problem, sample_observation(problem, 0))
    assert len(plan.reasons) == 2000
    assert plan.solution.gap <= 1e-8
