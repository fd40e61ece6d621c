from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from airtune.solve import choose, lagrangian


def brute_force(cost, load, capacity, group):
    n, k = cost.shape
    best = np.inf
    for pick in product(range(k), repeat=n):
        rows = np.arange(n)
        used = np.bincount(group, load[rows, pick], minlength=capacity.shape[0])
        if np.all(used <= capacity):
            best = min(best, cost[rows, pick].sum())
    return best


def menus(seed, n, k, groups=1):
    draws = np.random.default_rng(seed)
    cost = np.sort(draws.random((n, k)), axis=1)
    load = np.sort(draws.random((n, k)), axis=1)[:, ::-1]
    group = np.arange(n) % groups
    return cost, load, np.full(groups, 0.45 * n / groups), group


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 4), st.integers(1, 2))
def test_the_choice_fits_and_the_bound_holds(seed, n, k, groups):
    cost, load, capacity, group = menus(seed, n, k, groups)
    found = choose(cost, load, capacity, group)
    best = brute_force(cost, load, capacity, group)
    if np.isinf(best):
        assert np.isinf(found.cost)
        assert np.isinf(found.bound)
    else:
        used = np.bincount(group, load[np.arange(n), found.index], minlength=groups)
        assert np.all(used <= capacity + 1e-12)
        assert found.bound <= best + 1e-9
        assert best <= found.cost + 1e-12


def test_is_within_one_device_of_a_mixed_integer_solver():
    cost, load, capacity, group = menus(3, 60, 6)
    n, k = cost.shape
    once = np.kron(np.eye(n), np.ones(k))
    exact = milp(
        cost.ravel(),
        integrality=np.ones(n * k),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(once, 1, 1),
            LinearConstraint(load.ravel()[None], -np.inf, capacity),
        ],
    )
    found = choose(cost, load, capacity, group)
    assert found.bound <= exact.fun + 1e-6
    assert found.cost <= found.bound + cost.max()


def test_any_multiplier_proves_a_bound():
    cost, load, capacity, group = menus(4, 5, 4)
    best = brute_force(cost, load, capacity, group)
    for multiplier in (0.0, 0.3, 2.0):
        assert lagrangian(cost, load, capacity, group, np.array([multiplier])) <= best + 1e-12


def test_a_line_that_cannot_be_had_is_never_chosen():
    cost, load = np.array([[0.0, 1.0]]), np.array([[np.inf, 0.1]])
    found = choose(cost, load, np.ones(1), np.zeros(1, int))
    assert found.index.tolist() == [1]


def test_stops_at_what_is_wanted():
    cost, load, capacity, group = menus(5, 50, 6)
    best = choose(cost, load, capacity, group)
    enough = choose(cost, load, capacity, group, wanted=best.cost * 1.2)
    assert enough.cost <= best.cost * 1.2
    assert choose(cost, load, capacity, group, wanted=best.bound * 0.5).bound > best.bound * 0.5
