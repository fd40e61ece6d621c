from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.errors import InfeasibleError
from airtune.solve import LadderProblem, divide_min_max, round_to_ladder, solve_joint


def on_ladder(problem, levels, allowed=None):
    pruned = np.linspace(0.0, 0.7, levels)
    n = len(problem)
    return LadderProblem(
        curves=problem.curves,
        fixed_s=problem.fixed_s,
        compute_s=problem.compute_s[:, None] * (1 - pruned),
        bits=problem.bits[0] * (1 - pruned),
        pruned=pruned,
        allowed=np.ones((n, levels), bool) if allowed is None else allowed,
        weight=problem.weight,
        prune_budget=problem.prune_budget,
    )


def brute_force_round_s(ladder):
    n, levels = ladder.allowed.shape
    best, rows = np.inf, np.arange(n)
    for pick in map(np.array, product(range(levels), repeat=n)):
        if ladder.allowed[rows, pick].all() and (
            ladder.weight @ ladder.pruned[pick] <= ladder.prune_budget + 1e-12
        ):
            time = divide_min_max(
                ladder.curves, ladder.fixed_s + ladder.compute_s[rows, pick], ladder.bits[pick]
            ).round_s
            best = min(best, time)
    return best


@pytest.mark.parametrize("seed", range(3))
def test_bound_and_answer_enclose_the_true_optimum(joint, seed):
    problem = joint(4, seed)
    ladder = on_ladder(problem, 5)
    near = solve_joint(problem)
    found = round_to_ladder(ladder, near.round_s, near.kept)
    best = brute_force_round_s(ladder)
    assert found.bound_s <= best * (1 + 1e-6)
    assert found.round_s >= best * (1 - 1e-6)
    assert found.round_s <= best * 1.12


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 60), st.integers(0, 10**6), st.booleans(), st.floats(0.0, 0.6))
def test_levels_keep_the_budget_and_shares_fit(joint, n, seed, mixed, budget):
    problem = joint(n, seed, links=3, mixed=mixed, budget=budget)
    near = solve_joint(problem)
    found = round_to_ladder(on_ladder(problem, 20), near.round_s, near.kept)
    assert found.mean_pruned <= budget + 1e-9
    assert np.all(problem.curves.load(found.share) <= 1 + 1e-9)
    assert found.bound_s <= found.round_s


def test_windows_of_a_large_fleet_are_checked_against_every_level(joint):
    problem = joint(1100, 1)
    ladder = on_ladder(problem, 40)
    near = solve_joint(problem)
    found = round_to_ladder(ladder, near.round_s, near.kept)
    assert 0 <= found.gap <= 1e-3
    assert found.round_s >= near.bound_s * (1 - 1e-9)


def test_a_device_that_may_use_no_level_is_named(joint):
    allowed = np.ones((3, 4), bool)
    allowed[1] = False
    with pytest.raises(
        InfeasibleError, match="no pruning level of this model is allowed on device 1"
    ):
        on_ladder(joint(3, 0), 4, allowed)


def test_a_budget_below_what_memory_forces_is_named(joint):
    allowed = np.ones((3, 4), bool)
    allowed[2, :3] = False
    with pytest.raises(InfeasibleError, match=r"pruning budget is 0\.01, but memory forces"):
        on_ladder(joint(3, 0, budget=0.01), 4, allowed)
