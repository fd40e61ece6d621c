from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.errors import InfeasibleError
from airtune.solve import divide_min_max, prune_min_max, solve_joint
from airtune.solve.problem import SLACK


def oracle_round_s(problem):
    """The problem in theta = 1/T, y = x theta, as cvxpy sees it (one Shannon link, no constants)."""
    n, curves = len(problem), problem.curves
    theta_scale = float(np.max(problem.compute_s))
    theta, y, z = cp.Variable(), cp.Variable(n), cp.Variable(n)
    signal, scale = curves.signal, curves.scale / np.log(2)
    # rate / bits, in 1/s: z log(1 + s/z) = -rel_entr(z, z + s)
    pace = cp.multiply(scale / problem.bits, -cp.rel_entr(z, z + signal))
    keep = [
        y[i]
        <= (theta_scale / problem.compute_s[i])
        * (1 - cp.inv_pos(1 + problem.compute_s[i] * pace[i]))
        for i in range(n)
    ]
    task = cp.Problem(
        cp.Maximize(theta),
        [
            *keep,
            y >= problem.least_kept * theta,
            y <= problem.most_kept * theta,
            z >= 0,
            problem.weight @ y >= problem.least_value * theta,
            cp.sum(z) <= 1,
        ],
    )
    task.solve(solver="CLARABEL", tol_gap_abs=1e-8, tol_gap_rel=1e-8, tol_feas=1e-8)
    return theta_scale / float(theta.value)


@pytest.mark.parametrize(
    ("n", "seed", "budget"), [(5, 0, 0.3), (20, 1, 0.1), (20, 2, 0.5), (60, 3, 0.3)]
)
def test_agrees_with_an_independent_convex_solver(joint, n, seed, budget):
    problem = joint(n, seed, budget=budget)
    assert solve_joint(problem).round_s == pytest.approx(oracle_round_s(problem), rel=1e-5)


@pytest.mark.parametrize(("n", "seed", "budget"), [(4, 0, 0.0), (6, 1, 0.0), (6, 2, 0.3)])
def test_a_device_without_data_is_pruned_as_far_as_helps(joint, n, seed, budget):
    problem = joint(n, seed, budget=budget)
    weight = problem.weight * (np.arange(n) % 3 > 0)
    problem = replace(problem, weight=weight / weight.sum())
    found = solve_joint(problem)
    assert found.status == "optimal"
    assert found.round_s == pytest.approx(oracle_round_s(problem), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(0, 10**6),
    st.sampled_from([np.inf, 5.0]),
    st.sampled_from([(1, False), (3, False), (3, True)]),
    st.booleans(),
    st.floats(0.0, 0.8),
)
def test_is_feasible_and_certified_on_any_links(joint, n, seed, cap, kind, constants, budget):
    problem = joint(
        n, seed, cap=cap, links=kind[0], mixed=kind[1], constants=constants, budget=budget
    )
    found = solve_joint(problem)
    assert found.status == "optimal"
    # The pruning budget is met to SLACK, so the answer may be that much sooner than the bound.
    assert -10 * SLACK <= found.gap <= 1e-8
    assert found.residual <= 1e-10
    finish = problem.finish_s(found.kept, found.share)
    assert finish.max() <= found.round_s * (1 + 1e-9)


@pytest.mark.parametrize("budget", [2e-12, 1e-11, 1e-10])
@pytest.mark.parametrize(
    ("n", "seed", "links", "mixed"), [(2, 5, 3, False), (13, 0, 1, False), (13, 1, 3, True)]
)
def test_a_pruning_budget_of_nearly_nothing_is_certified(joint, n, seed, links, mixed, budget):
    found = solve_joint(joint(n, seed, links=links, mixed=mixed, budget=budget))
    none = solve_joint(joint(n, seed, links=links, mixed=mixed, budget=0.0))
    assert found.status == "optimal"
    assert found.round_s == pytest.approx(none.round_s, rel=1e-7)
    assert found.bound_s <= none.round_s


@settings(max_examples=12, deadline=None)
@given(st.integers(2, 40), st.integers(0, 10**6), st.booleans(), st.floats(0.02, 0.6))
def test_the_fallback_finds_the_same_optimum(joint, n, seed, mixed, budget):
    problem = joint(n, seed, links=3, mixed=mixed, budget=budget)
    fast, slow = solve_joint(problem), solve_joint(problem, force_nested=True)
    assert slow.status == "optimal"
    assert slow.round_s == pytest.approx(fast.round_s, rel=3e-8)


@pytest.mark.parametrize("seed", range(5))
def test_no_random_answer_is_better(joint, seed):
    problem, draws = joint(6, seed, constants=True), np.random.default_rng(seed)
    best = solve_joint(problem).round_s
    for _ in range(60):
        share = draws.dirichlet(np.ones(6))
        assert prune_min_max(problem, share)[1] >= best * (1 - 1e-9)


def test_a_larger_budget_is_never_slower(joint):
    problem = joint(20, 3)
    times = [
        solve_joint(replace(problem, prune_budget=rate)).round_s
        for rate in np.linspace(0, 0.75, 11)
    ]
    assert np.all(np.diff(times) <= 1e-7 * times[0])


def test_without_budget_it_is_the_min_max_division(joint):
    problem = joint(12, 4, budget=0.0)
    division = divide_min_max(problem.curves, problem.compute_s, problem.bits)
    assert solve_joint(problem).round_s == pytest.approx(division.round_s, rel=1e-8)


def test_pruning_block_spends_the_budget_exactly(joint):
    problem = joint(15, 5, budget=0.2, max_prune=0.999)
    kept, finish_s = prune_min_max(problem, problem.curves.equal_shares())
    assert problem.weight @ (1 - kept) == pytest.approx(0.2, abs=1e-9)
    finish = problem.finish_s(kept, problem.curves.equal_shares())
    assert np.all(finish <= finish_s * (1 + 1e-9))
    pruned = kept < 1
    assert finish[pruned] == pytest.approx(finish_s, rel=1e-9)


def test_large_fleets_are_certified_too(joint):
    found = solve_joint(joint(20_000, 0))
    assert found.status == "optimal"
    assert found.gap <= 1e-8


def test_a_budget_below_what_memory_forces_names_constraint_and_device(joint):
    problem = joint(3, 0)
    with pytest.raises(
        InfeasibleError, match=r"pruning budget is 0.01, but memory forces .* device b"
    ):
        replace(
            problem, prune_budget=0.01, most_kept=np.array([1.0, 0.5, 1.0]), names=("a", "b", "c")
        )


def test_a_column_out_of_range_names_the_device(joint):
    problem = joint(2, 0)
    with pytest.raises(InfeasibleError, match="bits of device 1 is 0"):
        replace(problem, bits=np.array([1.0, 0.0]))
