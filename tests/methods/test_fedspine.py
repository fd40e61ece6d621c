"""FedSpine's decider and the deadline of other methods: what they tell, learn and refuse."""

from dataclasses import replace

import numpy as np
import pytest

from airtune.errors import MethodError, RecipeError
from airtune.methods import build_method, check_method, sample_problem
from airtune.methods.contract import sample_observation, sample_results
from airtune.methods.fedspine import FIRST_STEPS, FedSpine
from airtune.methods.paced import Paced, answers_of
from airtune.methods.whole_equal import WholeEqual
from airtune.plan import Method

PROBLEM = replace(sample_problem(), rounds=10)


def play(decider, rounds=4, problem=PROBLEM):
    state, plans = decider.init(problem), []
    for number in range(rounds):
        seen = sample_observation(problem, number)
        plan, state = decider.plan(problem, state, replace(seen, links=None, flops_per_s=None))
        results = sample_results(problem, seen, plan)
        count = len(results.device)
        agreed = {"agreement": np.ones(count), "agreement_noise": np.ones(count)}
        state = decider.learn(problem, state, replace(results, done=plan.assignments, **agreed))
        plans.append(plan)
    return plans, state


@pytest.mark.parametrize("form", ["bandit", "random", "fixed", "published"])
def test_every_form_keeps_the_contract(form):
    check_method(build_method("fedspine", {"form": form}))


def test_another_method_keeps_the_contract_with_a_deadline():
    check_method(Method("paced", Paced(WholeEqual(), 20)))


def test_the_first_round_is_short_and_the_next_has_a_deadline():
    plans, state = play(FedSpine())
    assert plans[0].pace is None
    assert set(plans[0].assignments.local_steps.tolist()) == {FIRST_STEPS}
    assert all(plan.pace is not None for plan in plans[1:])
    assert plans[1].notes["deadline_s"] == plans[1].pace.finish_s
    assert len(answers_of(state)) > 0
    assert state["seconds"] > 0


def test_arms_are_nested_and_the_first_is_what_pruning_leaves():
    plans, _ = play(FedSpine(sparsity=0.5, min_width=0.5, min_rank=2))
    pace, told = plans[-1].pace, plans[-1].assignments
    ranks = [rank for _, _, rank in pace.arms]
    assert ranks == [PROBLEM.workload.rank // 2**k for k in range(len(ranks) // 2)] * 2
    kept = 1.0 - told.prune_ffn[0]
    assert pace.arms[0][1] == pytest.approx(told.prune_ffn[0])
    assert 1.0 - pace.arms[-1][1] == pytest.approx(0.5 * kept)
    value = np.array(pace.value)
    assert (np.diff(value, axis=1) >= 0).all()
    assert value[0, 0] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("task", "widths"), [("classification", 2), ("causal-lm", 1)])
def test_a_language_model_is_trained_at_one_width_unless_asked(task, widths):
    problem = replace(PROBLEM, shape=replace(PROBLEM.shape, task=task))
    plans, _ = play(FedSpine(), problem=problem)
    assert len({ffn for _, ffn, _ in plans[-1].pace.arms}) == widths


def test_a_fixed_arm_and_random_arms_have_the_same_deadline_to_meet():
    plans, _ = play(FedSpine(form="fixed", fixed_rank=2))
    assert [rank for _, _, rank in plans[-1].pace.arms] == [2]
    plans, _ = play(FedSpine(form="random"))
    assert plans[-1].pace.arms == ()
    assert len(set(plans[-1].assignments.rank.tolist())) > 1


def test_gradual_pruning_ends_at_the_sparsity_and_seconds_move_it_on():
    plans, _ = play(FedSpine(pace="gradual", prune_every=1), rounds=10)
    pruned = [plan.notes["mean_pruned"] for plan in plans]
    assert pruned == sorted(pruned)
    assert pruned[0] < pruned[-1] == pytest.approx(0.5, abs=0.01)
    late = replace(PROBLEM, rounds=1000, seconds=1e-6)
    plans, _ = play(FedSpine(pace="gradual", prune_every=1), rounds=2, problem=late)
    assert plans[-1].notes["mean_pruned"] == pytest.approx(pruned[-1])


def test_a_recipes_deadline_is_never_passed():
    plans, _ = play(FedSpine(), problem=replace(PROBLEM, deadline_s=0.5))
    assert plans[-1].pace is None or plans[-1].pace.finish_s <= 0.5


def test_the_state_of_another_fleet_is_refused():
    decider = FedSpine()
    state = {**decider.init(PROBLEM), "devices": 3}
    with pytest.raises(MethodError, match="fleet of 3 devices"):
        decider.plan(PROBLEM, state, sample_observation(PROBLEM, 0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_width": 0.0}, "above 0 and at most 1"),
        ({"most_steps": -1}, "at least 0, got -1"),
        ({"explore": -1.0}, "explore must be at least 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        FedSpine(**settings)
