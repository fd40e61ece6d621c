"""Cuts and codecs against brute force and an exact integer programme."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, brentq, milp

from airtune.errors import InfeasibleError
from airtune.solve import Curves, SplitProblem, solve_split, solve_split_lagrangian


def random_problem(n, seed, *, cuts=3, codecs=3, links=1, dedicated=0, budget=0.5):
    """Unlike devices; the mildest codec costs nothing, the heaviest more than the budget."""
    draws = np.random.default_rng(seed)
    cut, codec = (grid.ravel() for grid in np.mgrid[1 : cuts + 1, 0:codecs])
    speed = 10.0 ** draws.uniform(-0.5, 0.5, (n, 1))
    link = np.arange(n) % links
    alone = np.arange(n) < dedicated
    link = np.where(alone, links + np.arange(n), link)
    size = links + dedicated
    bits = (codec + 1.0) ** 1.5
    loss = np.linspace(1.0, 0.0, codecs)[codec] * (1.0 + 0.1 * cut)
    allowed = cut <= draws.integers(1, cuts + 1, (n, 1))
    ones = np.ones((n, 1))
    return SplitProblem(
        curves=Curves(
            link,
            alone,
            10.0 ** draws.uniform(-1, 1, n),
            np.full(n, 2.0 * n),
            np.full(n, np.inf),
            np.ones(size),
        ),
        forward_s=cut / speed / 10,
        bits=ones * bits,
        down_s=bits / draws.uniform(5, 50, (n, 1)) / n,
        backward_s=cut / speed / 5,
        server_s=ones * (cuts + 1 - cut) / n * 0.3,
        loss=draws.dirichlet(np.ones(n))[:, None] * loss,
        allowed=allowed,
        loss_budget=budget,
    )


def best_step_s(problem, index):
    """The least time of a step for given lines, by one-dimensional root finding on each link."""
    rows, curves = np.arange(len(problem)), problem.curves
    forward, bits = problem.forward_s[rows, index], problem.bits[rows, index]

    def load(sent_s, members):
        return float(
            np.sum(curves.take(members).share_for(bits[members] / (sent_s - forward[members])))
        )

    sent = max(
        (forward + bits / curves.rate(np.ones(len(problem))))[rows[curves.dedicated]], default=0.0
    )
    after = 0.0
    for link in np.unique(curves.link):
        members = rows[curves.link == link]
        down, back = (
            problem.down_s[members, index[members]],
            problem.backward_s[members, index[members]],
        )
        after = max(after, down.sum() + back.max())
        if not curves.dedicated[members[0]]:
            low = max(
                forward[members] + bits[members] / curves.take(members).rate(np.ones(members.size))
            )
            sent = max(
                sent,
                low
                if load(low * (1 + 1e-9), members) <= 1
                else brentq(lambda t, m=members: load(t, m) - 1, low * (1 + 1e-9), 1e4),
            )
    return sent + after + float(np.sum(problem.server_s[rows, index]))


def brute_force(problem):
    n, k = problem.bits.shape
    rows = np.arange(n)
    choices = (np.array(index) for index in itertools.product(range(k), repeat=n))
    return min(
        best_step_s(problem, index)
        for index in choices
        if problem.allowed[rows, index].all() and problem.loss_of(index) <= problem.loss_budget
    )


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 1000), st.sampled_from([(1, 0), (2, 0), (1, 1)]))
@example(934, (1, 0))
def test_three_devices_are_solved_as_brute_force_solves_them(seed, form):
    problem = random_problem(3, seed, codecs=2, links=form[0], dedicated=form[1], budget=0.7)
    found, wanted = solve_split(problem), brute_force(problem)
    assert found.bound_s <= wanted * (1.0 + 1e-9)
    assert found.step_s == pytest.approx(wanted, rel=1e-6)
    assert found.gap <= 1e-6
    assert problem.loss_of(found.index) <= problem.loss_budget + 1e-9


@settings(deadline=None, max_examples=6)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 2))
def test_answers_keep_every_limit_and_their_bound_is_below_them(seed, n, links):
    problem = random_problem(n, seed, cuts=4, codecs=4, links=links)
    for found in (solve_split(problem), solve_split_lagrangian(problem)):
        assert problem.allowed[np.arange(n), found.index].all()
        assert found.loss <= problem.loss_budget + 1e-9
        assert np.max(problem.curves.load(found.share)) <= 1.0 + 1e-9
        assert found.step_s == pytest.approx(problem.step_s(found.index, found.share))
        assert found.step_s == pytest.approx(best_step_s(problem, found.index), rel=1e-6)
        assert not found.bound_s > found.step_s


def least_after_s(problem, sent_s):
    """The least of server and backward phase for a given A: (value, lines), by HiGHS."""
    n, k = problem.bits.shape
    left = sent_s - problem.forward_s
    flat = problem.curves.take(np.repeat(np.arange(n), k))
    rate = problem.bits / np.where(left > 0, left, 1.0)
    share = flat.share_for(rate.ravel()).reshape(n, k)
    able = problem.allowed & (left > 0) & (share <= 1.0)
    one = np.kron(np.eye(n), np.ones(k))
    lines = [np.append(row, 0.0) for row in one]
    low, high = [1.0] * n, [1.0] * n
    lines += [
        np.append(np.where(able, share, 0.0).ravel(), 0.0),
        np.append(problem.loss.ravel(), 0.0),
    ]
    lines += [
        np.append(problem.down_s.ravel() + one[i] * np.tile(problem.backward_s[i], n), -1.0)
        for i in range(n)
    ]
    low += [-np.inf] * (n + 2)
    high += [1.0, problem.loss_budget] + [0.0] * n
    answer = milp(
        np.append(problem.server_s.ravel(), 1.0),
        integrality=np.append(np.ones(n * k), 0),
        constraints=LinearConstraint(np.array(lines), low, high),
        bounds=Bounds(0, np.append(able.ravel().astype(float), np.inf)),
        options={"mip_rel_gap": 1e-6},
    )
    if answer.x is None:
        return np.inf, None
    return answer.fun, answer.x[:-1].reshape(n, k).argmax(1)


@pytest.mark.parametrize("seed", [0, 1])
def test_ten_devices_are_within_a_five_hundredth_of_an_exact_integer_programme(seed):
    problem = random_problem(10, seed)
    found = solve_split(problem)
    best = np.inf
    middle = found.step_s - problem.after_s(found.index)
    for sent_s in middle * np.linspace(0.6, 1.3, 36):
        _, index = least_after_s(problem, sent_s)
        if index is not None:
            best = min(best, best_step_s(problem, index))
    assert found.step_s <= best * 1.002
    assert found.bound_s <= best * (1.0 + 1e-9)


def test_a_hundred_devices_have_a_certified_gap_of_a_thousandth():
    problem = random_problem(100, 0, cuts=4, codecs=24)
    found = solve_split(problem)
    assert found.status == "optimal"
    assert 0.0 <= found.gap <= 1e-3


def test_the_lagrangian_is_never_better_than_the_proved_bound():
    for seed in range(2):
        problem = random_problem(20, seed, cuts=4, codecs=4)
        exact, descended = solve_split(problem), solve_split_lagrangian(problem)
        assert descended.step_s >= exact.bound_s
        assert descended.step_s <= 1.5 * exact.step_s


def test_a_budget_that_the_mildest_codecs_exceed_is_refused_with_its_device():
    problem = random_problem(4, 0)
    with pytest.raises(InfeasibleError, match=r"quality budget is 0, .*raise quality_budget"):
        SplitProblem(
            problem.curves,
            problem.forward_s,
            problem.bits,
            problem.down_s,
            problem.backward_s,
            problem.server_s,
            problem.loss + 0.1,
            problem.allowed,
            0.0,
            ("a", "b", "c", "d"),
        )


def test_a_device_without_a_line_is_refused_by_name():
    problem = random_problem(2, 0)
    allowed = problem.allowed.copy()
    allowed[1] = False
    with pytest.raises(InfeasibleError, match="device phone"):
        SplitProblem(
            problem.curves,
            problem.forward_s,
            problem.bits,
            problem.down_s,
            problem.backward_s,
            problem.server_s,
            problem.loss,
            allowed,
            1.0,
            ("desk", "phone"),
        )
