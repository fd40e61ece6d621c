"""FedSpine as published, and the baselines: contract, learners, what it learns from and refuses."""

from dataclasses import replace

import numpy as np
import pytest

from airtune.errors import RecipeError
from airtune.methods import METHODS, build_method, check_method, sample_problem, settings_faults
from airtune.methods.contract import sample_observation, sample_results
from airtune.methods.published import PublishedFedSpine
from airtune.methods.reward import RewardWeights, rewards
from airtune.plan import Results

LEARNERS = ("pooled", "private", "random", "fixed", "ratio-only", "rank-only")
PROBLEM = sample_problem()
ROWS = (
    "fedspine",
    "hetlora",
    "flexlora",
    "flora",
    "loraprune",
    "apt",
    "llm-pruner",
    "fluctuation-prune",
    "magnitude-prune",
    "random-prune",
)


def play(decider, rounds=10, problem=PROBLEM):
    """Return plans and the state after some rounds, the first device of each round failing."""
    problem, state, plans = replace(problem, rounds=rounds), None, []
    state = decider.init(problem)
    for number in range(rounds):
        seen = sample_observation(problem, number)
        plan, state = decider.plan(problem, state, replace(seen, links=None, flops_per_s=None))
        state = decider.learn(problem, state, sample_results(problem, seen, plan))
        plans.append(plan)
    return plans, state


@pytest.mark.parametrize("name", ROWS)
def test_fedspine_and_its_baselines_keep_the_contract(name):
    check_method(build_method(name))


@pytest.mark.parametrize("learner", LEARNERS)
def test_every_learner_keeps_the_contract_and_ends_exactly(learner):
    check_method(build_method("fedspine", {"form": "published", "learner": learner}))
    plans, _ = play(PublishedFedSpine(learner=learner, prune_every=5))
    last = plans[-1].assignments
    assert len(set(last.prune_ffn.tolist())) == 1
    pruned = PROBLEM.shape.pruned_fraction(last.prune_heads, last.prune_ffn)
    np.testing.assert_allclose(pruned, 0.5, atol=0.005)


@pytest.mark.parametrize("name", ROWS)
def test_the_method_sees_neither_devices_nor_channel(name):
    assert build_method(name).decider.needs == frozenset()


def test_a_failed_device_does_not_count_as_pruned():
    decider = PublishedFedSpine(prune_every=5)
    _, state = play(decider, rounds=1)
    assert state["told"][0] > 0
    assert state["level"][0] == 0
    assert state["level"][1] == state["told"][1]


def test_what_the_learner_does_not_choose_stays():
    plans, _ = play(PublishedFedSpine(learner="ratio-only", fixed_rank=4))
    assert {rank for plan in plans for rank in plan.assignments.rank.tolist()} == {4}
    plans, _ = play(PublishedFedSpine(learner="fixed", fixed_ratio=0.0, prune_every=5))
    shape = PROBLEM.shape
    for plan in plans:
        told = plan.assignments
        np.testing.assert_allclose(
            shape.pruned_fraction(told.prune_heads, told.prune_ffn), plan.notes["least_pruned"]
        )
    plans, _ = play(PublishedFedSpine(learner="rank-only", fixed_ratio=1.0))
    assert plans[0].assignments.prune_ffn == pytest.approx(plans[-1].assignments.prune_ffn[0])


def test_between_prunings_nobody_moves_unless_the_schedule_says_so():
    decider = PublishedFedSpine(prune_every=15, warmup=0.0, cooldown=0.0)
    plans, _ = play(decider, rounds=10)
    whole = [set(plan.assignments.device.tolist()) for plan in plans]
    steady = sorted(set.intersection(*whole[1:3]) - {0, 1})
    rows = [np.searchsorted(plan.assignments.device, steady) for plan in plans[1:3]]
    first, second = (
        plan.assignments.prune_ffn[row] for plan, row in zip(plans[1:3], rows, strict=True)
    )
    np.testing.assert_array_equal(first, second)


def test_devices_alike_in_time_share_what_they_learn():
    _, state = play(PublishedFedSpine())
    assert len(set(state["group"].tolist())) > 1
    assert state["trials"].shape[0] == 3
    assert play(PublishedFedSpine(learner="private"))[1]["trials"].shape[0] == len(PROBLEM.devices)


def test_every_choice_has_its_reason():
    plans, _ = play(PublishedFedSpine(prune_every=5))
    assert all("for the first time" in reason for reason in plans[0].reasons)
    assert any("mean reward" in reason for reason in plans[-1].reasons)
    assert all("rank" in reason for plan in plans for reason in plan.reasons)


def results_of(**columns):
    plan, _ = play(PublishedFedSpine(), rounds=1)
    base = sample_results(PROBLEM, sample_observation(PROBLEM, 0), plan[0])
    count = len(base.device)
    plain = {
        "loss_first": np.full(count, 2.0),
        "loss_last": np.full(count, 1.0),
        "finish_s": np.full(count, 3.0),
        "importance": np.full(count, np.nan),
    }
    return replace(base, status=np.full(count, "ok"), **(plain | columns)), np.ones(count, bool)


def test_the_reward_by_hand():
    results, came = results_of()
    done = np.full(came.size, 0.5)
    np.testing.assert_allclose(rewards(results, came, done, RewardWeights()), 0.5)
    np.testing.assert_allclose(
        rewards(results, came, done, RewardWeights(loss=0.0, prune=1.0)), done
    )


def test_late_devices_earn_less_and_important_ones_more():
    time_s = np.full(9, 3.0)
    time_s[4] = 9.0
    importance = np.ones(9)
    importance[2] = 4.0
    results, came = results_of(finish_s=time_s, importance=importance)
    reward = rewards(results, came, np.full(9, 0.5), RewardWeights())
    assert np.argmin(reward) == 4
    assert np.argmax(reward) == 2
    assert np.all((reward >= 0) & (reward <= 1))


def test_an_early_device_is_paid_no_less_than_one_in_time():
    time_s = np.full(9, 3.0)
    time_s[4], time_s[7] = 0.5, 9.0
    results, came = results_of(finish_s=time_s)
    reward = rewards(results, came, np.full(9, 0.5), RewardWeights())
    np.testing.assert_allclose(np.delete(reward, 7), 0.5)
    assert reward[7] < 0.5


def test_where_the_schedule_leaves_no_choice_the_ratio_neither_pays_nor_costs():
    decider = PublishedFedSpine(
        warmup=0.2, cooldown=0.5, prune_every=PROBLEM.workload.local_steps * 2
    )
    state, chose, paid = decider.init(PROBLEM), [], []
    for round in range(PROBLEM.rounds):
        seen = sample_observation(PROBLEM, round)
        plan, state = decider.plan(PROBLEM, state, replace(seen, links=None, flops_per_s=None))
        count = len(plan.assignments)
        results = replace(
            sample_results(PROBLEM, seen, plan),
            status=np.full(count, "ok"),
            loss_first=np.full(count, 2.0),
            loss_last=np.full(count, 1.0),
            finish_s=np.full(count, 3.0),
            importance=np.full(count, np.nan),
        )
        state = decider.learn(PROBLEM, state, results)
        chose.append(any("ratio" in reason for reason in plan.reasons))
        paid.append(state["reward_mean"])
    still = [reward for had, reward in zip(chose, paid, strict=True) if not had]
    assert any(chose)
    assert len(still) > 2
    np.testing.assert_allclose(still, 0.5)


def test_a_device_that_never_answers_teaches_nothing():
    decider, problem = PublishedFedSpine(), PROBLEM
    state = decider.init(problem)
    seen = sample_observation(problem, 0)
    plan, state = decider.plan(problem, state, replace(seen, links=None, flops_per_s=None))
    results: Results = sample_results(problem, seen, plan)
    silent = replace(results, status=np.full(len(plan.assignments), "absent"))
    after = decider.learn(problem, state, silent)
    assert after["trials"].sum() == 0
    late = replace(results, status=np.full(len(plan.assignments), "late"))
    after = decider.learn(problem, state, late)
    assert after["trials"].sum() == len(plan.assignments)
    assert after["reward"].sum() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, "sparsity: must be above 0 and below 1, got 1"),
        ({"sparsity": "fast"}, "must be a number"),
        ({"cooldown": 1.0}, "cooldown: must be a part of the rounds in [0, 1), got 1"),
        ({"form": "greedy"}, "bandit or random"),
        ({"groups": 0}, "groups: must be at least 1, got 0"),
        ({"own_importance": 2}, "own_importance: must be in [0, 1], got 2"),
        ({"discount": 0.0}, "discount: must be above 0"),
        ({"prune_every": 0}, "prune_every: must be at least 1"),
    ],
)
def test_settings_that_mean_nothing_are_named(settings, message):
    (fault,) = settings_faults("fedspine", settings)
    assert message in fault


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("fedspine", {"sparsity": 0.99}, "would leave a block"),
        ("loraprune", {"sparsity": 0.99}, "would leave a block"),
    ],
)
def test_what_the_model_cannot_do_is_refused_before_the_first_round(name, settings, message):
    with pytest.raises(RecipeError, match=message):
        build_method(name, settings).decider.init(PROBLEM)


def test_unlike_ranks_follow_the_observed_speed_and_what_is_left():
    decider = build_method("hetlora", {"min_rank": 1}).decider
    state = decider.init(PROBLEM)
    state = {**state, "unit_s": np.array([5.0, 1.0, 9.0, np.nan, 2.0, 3.0, 4.0, 7.0, 8.0])}
    left = np.array([8, 3, 8, 8, 8, 8, 8, 8, 8])
    seen = sample_observation(PROBLEM, 0)
    plan, _ = decider.plan(PROBLEM, {**state, "rank_left": left}, seen)
    rank = plan.assignments.rank
    assert rank[1] == 3
    assert rank[2] == 1
    assert rank[4] == 8


def test_pruning_rows_share_one_sparsity_and_differ_in_importance():
    kinds = {name: build_method(name).work.importance for name in ROWS[4:]}
    assert kinds == {
        "loraprune": "lora-gradient",
        "apt": "salience",
        "llm-pruner": "first-order",
        "fluctuation-prune": "fluctuation",
        "magnitude-prune": "magnitude",
        "random-prune": "random",
    }
    assert all(METHODS[name].kind != "method" for name in ROWS[1:])
