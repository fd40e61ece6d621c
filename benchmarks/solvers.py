"""The solvers' goals: certified gaps, agreement with a convex solver, speed.

The instances are devices in a cell: 50-500 m away, 3GPP path loss, 8 dB shadowing, Rayleigh fading,
10-23 dBm (at least -10 dB at an
equal share), 0.3-10 TFLOP/s, 1 MHz a device, data shares from a Dirichlet distribution, at most 70 % of
a device pruned and 30 % in the weighted mean. Times are processor seconds of this process, medians
of at least five instances; ratios to SciPy compare the same instance within one run.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from airtune.methods import build_method, sample_problem
from airtune.methods.contract import sample_observation
from airtune.solve import Curves, JointProblem, divide_min_max, solve_bcd, solve_joint
from benchmarks.figure import Figure, at_least, at_most

Array = NDArray[np.float64]
Result = TypeVar("Result")
REPEATS = 5
WEAKEST = 0.1
"""Least signal-to-noise ratio at an equal share: weaker devices would sit the round out."""


def cell(n: int, seed: int) -> JointProblem:
    """Return one drawn cell of n devices."""
    draws = np.random.default_rng(seed)
    hertz = 1e6 * n
    distance_km = np.sqrt(draws.uniform(0.05**2, 0.5**2, n))
    loss_db = 128.1 + 37.6 * np.log10(distance_km) + 8.0 * draws.standard_normal(n)
    gain = 10 ** (-loss_db / 10) * draws.exponential(size=n)
    power_w = 10 ** (draws.uniform(10, 23, n) / 10) * 1e-3
    signal = np.maximum(power_w * gain / 10 ** (-17.4 - 3.0) / hertz, WEAKEST / n)
    nothing, one = np.zeros(n), np.ones(n)
    return JointProblem(
        curves=Curves(np.zeros(n, np.int64), one < 0, signal, one * hertz, one * np.inf, one[:1]),
        fixed_s=nothing,
        compute_s=30.0 / 10 ** draws.uniform(-0.5, 1.0, n),
        fixed_bits=nothing,
        bits=one * 4e7,
        weight=draws.dirichlet(one * 3.0),
        least_kept=one * 0.3,
        most_kept=one,
        prune_budget=0.3,
    )


def run() -> Iterator[Figure]:
    """Yield every figure of the solvers."""
    yield from gaps()
    yield from descents()
    yield from scale()
    yield from against_slsqp()
    yield from divisions()
    yield from plans()


def gaps() -> Iterator[Figure]:
    """Hold the duality gap and the agreement with a convex solver for N up to 200."""
    own, apart = [], []
    for n in (10, 50, 100, 200):
        for seed in range(3):
            problem = cell(n, seed)
            found = solve_joint(problem)
            own.append(found.gap)
            apart.append(abs(found.round_s / oracle_round_s(problem) - 1.0))
    solved = [distance for distance in apart if np.isfinite(distance)]
    told = f"cvxpy with Clarabel, N 10-200; it solved {len(solved)} of {len(apart)} cells"
    yield at_most("solvers.joint.duality_gap", max(own), 1e-8, "its own dual, N 10-200")
    yield at_most("solvers.joint.against_cvxpy", max(solved), 1e-5, told)


def oracle_round_s(problem: JointProblem) -> float:
    """Return the optimum as cvxpy finds it, in theta = 1/T and y = x theta; NaN where it fails."""
    n, curves, unit_s = len(problem), problem.curves, float(np.max(problem.compute_s))
    theta, y, z = cp.Variable(), cp.Variable(n), cp.Variable(n)
    # z is the share times n, so that everything is near one
    entropy = -cp.rel_entr(z, z + n * curves.signal)
    pace = cp.multiply(curves.scale / n / np.log(2) * problem.compute_s / problem.bits, entropy)
    task = cp.Problem(
        cp.Maximize(theta),
        [
            y <= cp.multiply(unit_s / problem.compute_s, 1 - cp.inv_pos(1 + pace)),
            y >= problem.least_kept * theta,
            y <= problem.most_kept * theta,
            problem.weight @ y >= problem.least_value * theta,
            cp.sum(z) <= n,
            z >= 0,
        ],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            task.solve(solver="CLARABEL", tol_gap_abs=1e-8, tol_gap_rel=1e-8, tol_feas=1e-8)
        except cp.error.SolverError:
            return float("nan")
    if task.status != cp.OPTIMAL:
        return float("nan")
    return unit_s / float(theta.value)


def descents() -> Iterator[Figure]:
    """Show how far block coordinate descent ends from the optimum, from both starts."""
    for start in ("bandwidth-first", "pruning-first"):
        distance = [
            solve_bcd(problem, start).round_s / solve_joint(problem).round_s - 1.0
            for problem in (cell(20, seed) for seed in range(20))
        ]
        worst, least = max(distance), min(distance)
        told = f"exact solver, 20 cells of 20 devices, median; worst {worst:.3f}"
        yield Figure(
            f"solvers.bcd.gap[{start}]",
            float(np.median(distance)),
            ">= 0 everywhere",
            least >= -1e-9,
            told,
        )


def scale() -> Iterator[Figure]:
    """Time the joint solver on large cells, and its fallback."""
    for n, goal_ms in ((10_000, 15.0), (100_000, 200.0)):
        problems = [cell(n, seed) for seed in range(REPEATS)]
        found = [timed(partial(solve_joint, problem)) for problem in problems]
        gap = max(solution.gap for _, solution in found)
        yield guide(f"solvers.joint.ms[{n}]", median_ms(found), goal_ms)
        yield at_most(f"solvers.joint.duality_gap[{n}]", gap, 1e-8, "its own dual")
        slow, nested = timed(partial(solve_joint, problems[0], force_nested=True))
        told = f"processor time, nested search, gap {nested.gap:.1e}"
        yield at_most(f"solvers.joint.fallback_s[{n}]", slow, 5.0, told)


def against_slsqp() -> Iterator[Figure]:
    """Compare with SciPy's SLSQP, given exact derivatives, on the same cells."""
    for n, goal, repeats in ((50, 50.0, REPEATS), (100, 500.0, REPEATS)):
        ratios, worse = [], []
        for seed in range(repeats):
            problem = cell(n, seed)
            ours = min(timed(partial(solve_joint, problem))[0] for _ in range(5))
            theirs, finish_s = timed(partial(slsqp_round_s, problem))
            ratios.append(theirs / ours)
            worse.append(finish_s / solve_joint(problem).round_s - 1.0)
        told = f"SciPy SLSQP, same cells, median of {repeats}; it ends {np.median(worse):.1%} above"
        yield at_least(f"solvers.joint.speed[{n}]", float(np.median(ratios)), goal, told)


def slsqp_round_s(problem: JointProblem) -> float:
    """Return what SLSQP reaches from equal shares and uniform pruning."""
    n, curves = len(problem), problem.curves
    share, kept = curves.equal_shares(), np.full(n, problem.least_value)
    unit_s = float(np.max(problem.finish_s(kept, share)))

    def finish(v: Array) -> Array:
        return problem.finish_s(v[:n], v[n:-1] / n) / unit_s

    def slopes(v: Array) -> Array:
        rate, slope = curves.rate(v[n:-1] / n), curves.slope(v[n:-1] / n)
        table = np.zeros((n, 2 * n + 1))
        table[:, :n] = -np.diag((problem.compute_s + problem.bits / rate) / unit_s)
        table[:, n:-1] = np.diag(v[:n] * problem.bits / rate**2 * slope / n / unit_s)
        table[:, -1] = 1.0
        return table

    last = np.append(np.zeros(2 * n), 1.0)
    budget = np.concatenate([np.zeros(n), -np.ones(n) / n, [0.0]])
    prune = np.concatenate([problem.weight, np.zeros(n), [0.0]])
    answer = minimize(
        lambda v: v[-1],
        np.concatenate([kept, share * n, [1.0]]),
        jac=lambda v: last,
        method="SLSQP",
        bounds=[(0.3, 1.0)] * n + [(1e-4, n)] * n + [(0.0, None)],
        constraints=[
            {"type": "ineq", "fun": lambda v: v[-1] - finish(v), "jac": slopes},
            {"type": "ineq", "fun": lambda v: 1.0 + budget @ v, "jac": lambda v: budget},
            {
                "type": "ineq",
                "fun": lambda v: prune @ v - problem.least_value,
                "jac": lambda v: prune,
            },
        ],
        options={"maxiter": 200, "ftol": 1e-8},
    )
    return float(answer.x[-1]) * unit_s


def divisions() -> Iterator[Figure]:
    """Time and check the min-max division of a link."""
    found = []
    for seed in range(REPEATS * 4):
        problem = cell(1000, seed)
        found.append(
            timed(partial(divide_min_max, problem.curves, problem.compute_s, problem.bits))
        )
    yield guide("solvers.division.ms[1000]", median_ms(found), 2.0)
    gap = max(division.gap for _, division in found)
    yield at_most("solvers.division.gap[1000]", gap, 1e-8, "its own tangent bound")


def plans() -> Iterator[Figure]:
    """Time the planning of a round for 10,000 devices, and the gap after rounding."""
    problem = sample_problem(devices=10_000)
    observation = sample_observation(problem, 0)
    for name in ("jcpba", "fedavg-lora"):
        decider = build_method(name).decider
        found = [timed(partial(decider.plan, problem, {}, observation)) for _ in range(REPEATS)]
        median = float(np.median([seconds for seconds, _ in found]))
        told = "processor time of one round, 10,000 devices on three links"
        yield at_most(f"solvers.plan_s[{name}]", median, 1.0, told)
        solution = found[0][1][0].solution
        if solution is not None:
            yield at_most(
                f"solvers.gap_rounded[{name}]",
                solution.gap_rounded,
                1e-2,
                f"bound of the discrete problem; {solution.gap:.1e} before",
            )


def timed(call: Callable[[], Result]) -> tuple[float, Result]:
    """Return the processor seconds of a call and what it returned."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def median_ms(found: Sequence[tuple[float, object]]) -> float:
    """Return the median of timed calls in milliseconds."""
    return 1e3 * float(np.median([seconds for seconds, _ in found]))


def guide(name: str, value_ms: float, goal_ms: float) -> Figure:
    """Return an absolute time: up to twice its goal counts as holding on a noisy machine."""
    told = "processor time in ms; up to twice the goal counts as holding"
    return Figure(name, value_ms, f"<= {goal_ms:g}", value_ms <= 2.0 * goal_ms, told)
