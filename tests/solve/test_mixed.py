"""Whole and cut devices together: exact times, proved bounds, never worse than a start."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from airtune.errors import InfeasibleError
from airtune.solve import (
    Curves,
    MixedProblem,
    divide_min_max,
    round_times,
    solve_mixed,
)


def problem_of(n, seed, *, steps=3, links=1, dedicated=0.0, cuts=2, codecs=2, levels=3):
    """Return random menus: levels of pruning of the whole model, and cuts with codecs."""
    draw = np.random.default_rng(seed)
    speed, memory = 10 ** draw.uniform(-0.7, 0.7, n), draw.uniform(0.1, 1.4, n)
    lines = [
        {"whole": True, "fixed_s": 5.0 * steps * (1.1 - p) / speed, "bits": 8e6 * (1 - 0.5 * p),
         "pruned": p, "allowed": memory >= 1 - 0.6 * p}
        for p in np.linspace(0.0, 0.7, levels)
    ] + [
        {"fixed_s": 0.5 * c / speed, "bits": 2e6 / 2**q, "backward_s": 1.0 * c / speed,
         "down_s": 0.1 / 2**q, "server_s": 0.05 * (cuts + 1 - c), "adapter_bits": 1e6 * c,
         "fetch_s": 0.1 * c, "server_bytes": cuts + 2.0 - c, "log_rounds": 0.1 * q * q - 0.1,
         "allowed": memory >= 0.2 * (c - 1)}
        for c, q in itertools.product(range(1, cuts + 1), range(codecs))
    ]  # fmt: skip
    columns = ("whole", "fixed_s", "bits", "backward_s", "down_s", "server_s", "adapter_bits",
               "fetch_s", "server_bytes", "pruned", "log_rounds", "allowed")  # fmt: skip
    tables = {
        name: np.stack([np.broadcast_to(line.get(name, 0.0), (n,)) for line in lines], axis=1)
        for name in columns
    }
    tables |= {"whole": tables["whole"][0] > 0, "allowed": tables["allowed"] > 0}
    curves = Curves(
        draw.integers(0, links, n), draw.random(n) < dedicated, 10 ** draw.uniform(-1, 2, n),
        np.full(n, 4e6), np.full(n, np.inf), np.ones(links),
    )  # fmt: skip
    grid = np.linspace(0.0, 0.7, 8)
    return MixedProblem(
        curves=curves, steps=steps, weight=np.full(n, 1.0 / n), prune_grid=grid,
        prune_log_rounds=2.0 * grid**2, server_memory_bytes=2.5 * n, **tables,
    )  # fmt: skip


def some_choice(problem, draw):
    return np.array([draw.choice(np.flatnonzero(row)) for row in problem.allowed])


def cost_of(problem, index):
    return problem.log_k(index) + np.log(round_times(problem, index).round_s)


def test_a_round_of_whole_devices_is_the_min_max_division():
    problem = problem_of(6, 0)
    index = np.full(6, 2)
    fixed, bits = problem.of(problem.fixed_s, index), problem.of(problem.bits, index)
    best = divide_min_max(problem.curves, fixed, bits)
    assert round_times(problem, index).round_s == pytest.approx(best.round_s, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_mixed_round_takes_what_a_general_solver_finds(seed):
    problem = problem_of(4, seed)
    index = some_choice(problem, np.random.default_rng(seed))
    index[0] = problem.allowed.shape[1] - 2
    found = round_times(problem, index)
    of, later, cut = problem.of, problem.steps - 1, ~problem.whole[index]
    fixed, bits, back, down = (of(table, index) for table in (
        problem.fixed_s, problem.bits, problem.backward_s, problem.down_s))  # fmt: skip
    longest = np.max(np.where(cut, back + np.sum(down), 0.0))
    rest = later * longest + problem.steps * np.sum(of(problem.server_s, index))
    begun = of(problem.fetch_s, index) + fixed + back + down
    first_bits = bits + of(problem.adapter_bits, index)

    def room(z):  # z = shares, T, A, X, in units of the found round
        rate = problem.curves.rate(np.maximum(z[:4], 1e-9))
        round_s, send_s, first_s = z[4:] * found.round_s
        send = fixed + bits / rate
        return np.concatenate([
            np.where(cut, send_s, round_s) - send,
            np.where(cut, first_s - begun - first_bits / rate, 1.0),
            [round_s - first_s - later * send_s - rest, 1.0 - np.sum(z[:4])],
        ])  # fmt: skip

    start = np.concatenate(
        [found.share, [1.0, found.send_s / found.round_s, found.first_s / found.round_s]]
    )
    assert room(start).min() >= -1e-5 * found.round_s
    loose = start * np.array([1.0] * 4 + [1.3, 1.2, 1.2])
    answer = minimize(
        lambda z: z[4], loose, method="SLSQP", bounds=[(1e-6, 1)] * 4 + [(0, 10)] * 3,
        constraints=[{"type": "ineq", "fun": room}], options={"maxiter": 500, "ftol": 1e-10},
    )  # fmt: skip
    assert answer.x[4] >= 1.0 - 1e-5


@pytest.mark.parametrize(("seed", "more"), [
    (0, {}), (2, {"steps": 1}), (4, {"links": 2, "dedicated": 0.5}),
])  # fmt: skip
def test_three_devices_are_chosen_as_brute_force_chooses(seed, more):
    problem = problem_of(3, seed, levels=2, codecs=2, **more)
    everything = itertools.product(*(np.flatnonzero(row) for row in problem.allowed))
    costs = [cost_of(problem, np.array(index)) for index in everything
             if problem.fits(np.array(index))]  # fmt: skip
    found = solve_mixed(problem, most_boxes=2000)
    assert found.log_bound <= min(costs) + 1e-9
    assert found.log_cost <= min(costs) + np.log1p(0.02) + 1e-9


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10**6), st.sampled_from([(1, 0.0), (2, 0.0), (2, 0.4)]),
       st.integers(1, 4))  # fmt: skip
def test_no_choice_beats_the_bound_and_no_start_beats_the_answer(n, seed, kind, steps):
    problem = problem_of(n, seed, links=kind[0], dedicated=kind[1], steps=steps)
    # The heaviest line asks 3 bytes of the server, so that every device has one that fits.
    problem = replace(problem, server_memory_bytes=3.0 * n)
    draw = np.random.default_rng(seed)
    starts = [some_choice(problem, draw) for _ in range(5)]
    found = solve_mixed(problem, starts[:2], most_boxes=40)
    fitting = [index for index in starts if problem.fits(index)]
    for index in fitting:
        assert cost_of(problem, index) >= found.log_bound - 1e-9
    for index in starts[:2]:
        if problem.fits(index):
            assert found.log_cost <= cost_of(problem, index) + 1e-6
    assert np.all(problem.curves.load(found.share) <= problem.curves.budget * (1 + 1e-6))


def test_a_device_that_holds_nothing_is_named():
    problem = problem_of(3, 0)
    allowed = problem.allowed.copy()
    allowed[1] = False
    with pytest.raises(InfeasibleError, match="device small has no line"):
        replace(problem, allowed=allowed, names=("a", "small", "c"))


def test_a_server_too_small_for_any_choice_is_refused():
    problem = problem_of(3, 1)
    only_cut = problem.allowed & ~problem.whole
    with pytest.raises(InfeasibleError, match="no choice"):
        solve_mixed(replace(problem, allowed=only_cut, server_memory_bytes=0.5))
