"""Whole and cut devices together: exact times, proved bounds, never worse than a start."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, milp, minimize

from airtune.errors import InfeasibleError
from airtune.solve import Curves, MixedProblem, divide_min_max, round_times, solve_mixed


def problem_of(n, seed, *, steps=3, links=1, dedicated=0.0, cuts=2, codecs=2, levels=3):
    """Return random menus: levels of pruning of the whole model, and cuts with codecs."""
    draw = np.random.default_rng(seed)
    speed, memory = 10 ** draw.uniform(-0.7, 0.7, n), draw.uniform(0.1, 1.4, n)
    lines = [
        {
            "whole": True,
            "fixed_s": 5.0 * steps * (1.1 - p) / speed,
            "bits": 8e6 * (1 - 0.5 * p),
            "pruned": p,
            "allowed": memory >= 1 - 0.6 * p,
        }
        for p in np.linspace(0.0, 0.7, levels)
    ] + [
        {
            "fixed_s": 0.5 * c / speed,
            "bits": 2e6 / 2**q,
            "backward_s": 1.0 * c / speed,
            "down_s": 0.1 / 2**q,
            "server_s": 0.05 * (cuts + 1 - c),
            "adapter_bits": 1e6 * c,
            "fetch_s": 0.1 * c,
            "server_bytes": cuts + 2.0 - c,
            "log_rounds": 0.1 * q * q - 0.1,
            "allowed": memory >= 0.2 * (c - 1),
        }
        for c, q in itertools.product(range(1, cuts + 1), range(codecs))
    ]
    columns = (
        "whole",
        "fixed_s",
        "bits",
        "backward_s",
        "down_s",
        "server_s",
        "adapter_bits",
        "fetch_s",
        "server_bytes",
        "pruned",
        "log_rounds",
        "allowed",
    )
    tables = {
        name: np.stack([np.broadcast_to(line.get(name, 0.0), (n,)) for line in lines], axis=1)
        for name in columns
    }
    tables |= {"whole": tables["whole"][0] > 0, "allowed": tables["allowed"] > 0}
    curves = Curves(
        draw.integers(0, links, n),
        draw.random(n) < dedicated,
        10 ** draw.uniform(-1, 2, n),
        np.full(n, 4e6),
        np.full(n, np.inf),
        np.ones(links),
    )
    grid = np.linspace(0.0, 0.7, 8)
    return MixedProblem(
        curves=curves,
        steps=steps,
        weight=np.full(n, 1.0 / n),
        prune_grid=grid,
        prune_log_rounds=2.0 * grid**2,
        server_memory_bytes=2.5 * n,
        **tables,
    )


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
    fixed, bits, back, down = (
        of(table, index)
        for table in (problem.fixed_s, problem.bits, problem.backward_s, problem.down_s)
    )
    longest = np.max(np.where(cut, back + np.sum(down), 0.0))
    rest = later * longest + problem.steps * np.sum(of(problem.server_s, index))
    begun = of(problem.fetch_s, index) + fixed + back + down
    first_bits = bits + of(problem.adapter_bits, index)

    def room(z):  # z = shares, T, A, X, in units of the found round
        rate = problem.curves.rate(np.maximum(z[:4], 1e-9))
        round_s, send_s, first_s = z[4:] * found.round_s
        send = fixed + bits / rate
        return np.concatenate(
            [
                np.where(cut, send_s, round_s) - send,
                np.where(cut, first_s - begun - first_bits / rate, 1.0),
                [round_s - first_s - later * send_s - rest, 1.0 - np.sum(z[:4])],
            ]
        )

    start = np.concatenate(
        [found.share, [1.0, found.send_s / found.round_s, found.first_s / found.round_s]]
    )
    assert room(start).min() >= -1e-5 * found.round_s
    loose = start * np.array([1.0] * 4 + [1.3, 1.2, 1.2])
    answer = minimize(
        lambda z: z[4],
        loose,
        method="SLSQP",
        bounds=[(1e-6, 1)] * 4 + [(0, 10)] * 3,
        constraints=[{"type": "ineq", "fun": room}],
        options={"maxiter": 500, "ftol": 1e-10},
    )
    assert answer.x[4] >= 1.0 - 1e-5


@pytest.mark.parametrize(
    ("seed", "more"), [(0, {}), (2, {"steps": 1}), (4, {"links": 2, "dedicated": 0.5})]
)
def test_three_devices_are_chosen_as_brute_force_chooses(seed, more):
    problem = problem_of(3, seed, levels=2, codecs=2, **more)
    everything = itertools.product(*(np.flatnonzero(row) for row in problem.allowed))
    costs = [
        cost_of(problem, np.array(index)) for index in everything if problem.fits(np.array(index))
    ]
    found = solve_mixed(problem, most_boxes=600)
    assert found.log_bound <= min(costs) + 1e-9
    assert found.log_cost <= min(costs) + np.log1p(0.02) + 1e-9


@settings(max_examples=8, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(0, 10**6),
    st.sampled_from([(1, 0.0), (2, 0.0), (2, 0.4)]),
    st.integers(1, 4),
)
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


def shares_at(problem, times):
    """Return the share that every line needs at a round's times, inf where none is enough."""
    rows = np.repeat(np.arange(len(problem)), problem.whole.size)
    left = np.where(problem.whole, times.round_s, times.send_s) - problem.fixed_s
    begun = problem.fetch_s + problem.fixed_s + problem.backward_s + problem.down_s
    start = np.where(problem.whole, np.inf, times.first_s - begun)
    rate = np.maximum(
        problem.bits / np.maximum(left, 1e-12),
        (problem.bits + problem.adapter_bits) / np.maximum(start, 1e-12),
    )
    share = problem.curves.take(rows).share_for(rate.ravel()).reshape(rate.shape)
    return np.where(problem.allowed & (left > 0) & (start > 0) & (share <= 1.0), share, np.inf)


def least_log_k(problem, times):
    """Return the least ln K at a round's times by an exact integer programme (HiGHS), one link."""
    n, k = problem.allowed.shape
    size, later, share = n * k, problem.steps - 1, shares_at(problem, times)
    usable = np.isfinite(share)
    # unknowns: a line each, the longest backward phase, pruning's part of ln K
    cost = np.append((problem.weight[:, None] * problem.log_rounds).ravel(), [0.0, 1.0])
    one = np.hstack([np.kron(np.eye(n), np.ones(k)), np.zeros((n, 2))])
    back = np.hstack(
        [
            np.kron(np.eye(n), np.ones(k)) * problem.backward_s.ravel(),
            -np.ones((n, 1)),
            np.zeros((n, 1)),
        ]
    )
    taken = later * problem.down_s + problem.steps * problem.server_s
    rows = np.vstack(
        [
            np.append(np.where(usable, share, 0.0).ravel(), [0, 0]),
            np.append(taken.ravel(), [later, 0]),
            np.append(problem.server_bytes.ravel(), [0, 0]),
        ]
    )
    room = [
        1.0 + 1e-9,
        times.round_s - times.first_s - later * times.send_s + 1e-9,
        problem.server_memory_bytes,
    ]
    slope = np.diff(problem.prune_log_rounds) / np.diff(problem.prune_grid)
    pruned = (problem.weight[:, None] * problem.pruned).ravel()
    curve = np.column_stack([slope[:, None] * pruned, np.zeros(slope.size), -np.ones(slope.size)])
    offset = slope * problem.prune_grid[:-1] - problem.prune_log_rounds[:-1]
    found = milp(
        cost,
        integrality=np.append(np.ones(size), [0, 0]),
        bounds=(
            np.append(np.zeros(size), [0, -np.inf]),
            np.append(usable.ravel(), [np.inf, np.inf]),
        ),
        constraints=[
            LinearConstraint(one, 1, 1),
            LinearConstraint(back, -np.inf, 0),
            LinearConstraint(rows, -np.inf, room),
            LinearConstraint(curve, -np.inf, offset),
        ],
    )
    return found.fun


@pytest.mark.parametrize("seed", [1, 3])
def test_twenty_devices_are_chosen_as_an_integer_programme_chooses_at_their_times(seed):
    problem = problem_of(20, seed)
    found = solve_mixed(problem)
    assert (~problem.whole[found.index]).any()
    exact = least_log_k(problem, found.times)
    assert exact - 1e-6 <= found.log_k <= exact + 0.005
    assert found.log_bound <= exact + np.log(found.times.round_s) + 1e-6


def test_four_devices_are_chosen_as_brute_force_chooses():
    problem = problem_of(4, 5, levels=2, codecs=1, cuts=2)
    costs = [
        cost_of(problem, np.array(index))
        for index in itertools.product(*(np.flatnonzero(row) for row in problem.allowed))
        if problem.fits(np.array(index))
    ]
    found = solve_mixed(problem, most_boxes=1000)
    assert found.log_bound - 1e-9 <= min(costs) <= found.log_cost + 1e-6
    assert found.log_cost <= min(costs) + np.log1p(0.01) + 1e-9


def test_a_device_without_data_or_in_a_deep_fade_and_one_alone_are_served():
    problem = problem_of(5, 2)
    weight = np.array([0.0, 0.25, 0.25, 0.25, 0.25])
    signal = problem.curves.signal.copy()
    signal[1] = 1e-4
    faded = replace(problem, weight=weight, curves=replace(problem.curves, signal=signal))
    found = solve_mixed(faded)
    assert found.log_bound <= found.log_cost < np.inf
    assert found.share[1] == found.share.max()
    alone = problem_of(1, 0)
    one = solve_mixed(alone)
    costs = [
        cost_of(alone, np.array([line]))
        for line in np.flatnonzero(alone.allowed[0])
        if alone.fits(np.array([line]))
    ]
    assert one.log_cost == pytest.approx(min(costs), abs=1e-6)


def test_a_limit_on_rounds_is_kept_and_its_bound_holds():
    problem = problem_of(4, 7, levels=2, codecs=2, cuts=1)
    costs = [
        (problem.log_k(np.array(index)), cost_of(problem, np.array(index)))
        for index in itertools.product(*(np.flatnonzero(row) for row in problem.allowed))
        if problem.fits(np.array(index))
    ]
    limit = float(np.median([log_k for log_k, _ in costs]))
    best = min(cost for log_k, cost in costs if log_k <= limit)
    found = solve_mixed(replace(problem, most_log_rounds=limit), most_boxes=600)
    assert found.log_k <= limit
    assert found.log_bound - 1e-9 <= best <= found.log_cost + 1e-6


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
