from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.solve import divide_min_max, prune_min_max, solve_bcd, solve_joint, uniform_kept


@settings(max_examples=15, deadline=None)
@given(
    st.integers(2, 30),
    st.integers(0, 10**6),
    st.booleans(),
    st.sampled_from(["bandwidth-first", "pruning-first"]),
)
def test_is_feasible_and_never_below_the_certified_bound(joint, n, seed, constants, start):
    problem = joint(n, seed, constants=constants)
    found = solve_bcd(problem, start)
    assert found.residual <= 1e-9
    assert found.round_s >= solve_joint(problem).bound_s * (1 - 1e-9)
    assert np.isnan(found.gap)


@pytest.mark.parametrize("start", ["bandwidth-first", "pruning-first"])
def test_the_objective_never_rises(joint, start):
    problem = joint(20, 7)
    times = [solve_bcd(problem, start, most_sweeps=sweeps).round_s for sweeps in range(1, 6)]
    assert np.all(np.diff(times) <= 1e-9 * times[0])


def test_bandwidth_first_never_improves_on_uniform_pruning(joint):
    for seed in range(5):
        problem = joint(20, seed)
        kept = uniform_kept(problem)
        uniform = divide_min_max(problem.curves, kept * problem.compute_s, kept * problem.bits)
        found = solve_bcd(problem, "bandwidth-first")
        assert found.round_s == pytest.approx(uniform.round_s, rel=1e-7)


def test_pruning_first_is_no_worse_than_pruning_at_equal_shares(joint):
    problem = joint(20, 8)
    _, equal_s = prune_min_max(problem, problem.curves.equal_shares())
    assert solve_bcd(problem, "pruning-first").round_s <= equal_s


def test_uniform_pruning_spends_the_budget_and_heeds_memory(joint):
    problem = replace(joint(10, 9), most_kept=np.r_[0.5, np.ones(9)])
    kept = uniform_kept(problem)
    assert kept[0] == 0.5
    assert problem.weight @ (1 - kept) == pytest.approx(0.3, abs=1e-9)
