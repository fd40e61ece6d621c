"""Joint pruning and bandwidth, solved to its global optimum with a certificate.

For a fixed finish time T the least pruning that meets T is convex in the shares, so the best
weighted kept fraction V(T) has a dual in one price a link; the least T with `V(T) >= Q` is the
optimum. T and the prices are found together by Newton's method on

    sum of shares on link l = budget_l   and   dual(T, prices) = Q,

whose Jacobian is an arrow: the first step in T is Newton's on the dual function alone. Where that
fails (everything clipped, a link that cannot bind) the nested search of `nested.py` takes over.

The certificate does not trust either search. The shares found are scaled to their budgets and the
pruning block solved exactly for them: that is a feasible answer with finish time T. At a slightly
smaller T' the dual is evaluated afresh; where it is below Q no answer can finish by T'.

Source: the problem is arXiv 2602.01024's; the published algorithm is in `bcd.py`. The global
solution and its certificate are this project's (docs/solvers.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from airtune.plan import Bools, Floats
from airtune.solve.bandwidth import Division, divide_min_max
from airtune.solve.nested import binding_links, full_links, nested_search, prices_at
from airtune.solve.problem import SLACK, JointProblem, JointSolution
from airtune.solve.pruning import prune_min_max
from airtune.solve.response import BestResponse, Columns, first_price, first_ratio, prepare, respond

_MOST_STEPS = 30
_TOLERANCE = 1e-10
_OPTIMAL_GAP = 1e-8
_ROUGH = 5e-2
_FINE = 3e-5
_GOOD_GAP = 2e-9
_NESTED_TOLERANCE = 1e-9
_FIRST_STEP = 1e-10
"""Below the answer by this, in ln(T), the dual is first asked for its proof."""
_SHORT = 1.0 - 4.0 * float(np.finfo(float).eps)
"""A dual below this part of what is needed is a proof, whatever the rounding of its sum."""
_LONGEST_PRICE_STEP = 2.0
"""In ln(price); longer steps leave the range where the first derivatives say anything."""


@dataclass(frozen=True, slots=True)
class _Point:
    """Where a search ended."""

    finish_s: float
    price: Floats
    response: BestResponse
    converged: bool
    iterations: int
    proved_s: float = 0.0
    """Largest finish time on the way at which the dual proved that nobody can meet it."""


def solve_joint(problem: JointProblem, *, force_nested: bool = False) -> JointSolution:
    """Return the kept fractions and shares with the least finish time, and a proof of how least.

    Args:
        problem: the joint problem, n devices on any number of links.
        force_nested: skip the two-dimensional Newton search; for tests and benchmarks.

    Returns:
        The solution; `gap` is at most 1e-8 where `status` is "optimal", else "stalled".

    Raises:
        InfeasibleError: if the problem is out of range; see `JointProblem`.
    """
    total = float(np.sum(problem.weight))
    if problem.least_value >= float(np.sum(problem.weight * problem.most_kept)) - SLACK * total:
        return _only_bandwidth(problem, _kept_by_need(problem))
    if problem.least_value <= float(np.sum(problem.weight * problem.least_kept)):
        return _only_bandwidth(problem, problem.least_kept)
    if problem.curves.dedicated.all():
        share = np.ones(len(problem))
        kept, finish_s = prune_min_max(problem, share)
        return JointSolution(
            kept=kept,
            share=share,
            round_s=finish_s,
            bound_s=finish_s,
            status="optimal",
            price=np.zeros(problem.curves.budget.shape[0]),
            iterations=0,
            residual=problem.violation(kept, share),
            method="exact",
        )
    blocks = prepare(problem)
    if not force_nested and (problem.curves.budget.shape[0] > 1 or problem.curves.dedicated.any()):
        solution = _at_bottleneck(problem, blocks)
        if solution is not None:
            return solution
    point = None if force_nested else _newton(problem, blocks)
    if point is not None and point.converged:
        solution = _certify(problem, blocks, point, method="exact, Newton")
        if solution.status == "optimal":
            return solution
    tried = 0 if point is None else point.iterations
    found = _nested(problem, blocks, tried)
    if found.status == "optimal":
        return found
    return _unspent(problem, found)


def _kept_by_need(problem: JointProblem) -> Floats:
    """Return the least fractions that spend no pruning budget: all of it but where weight is 0."""
    return np.where(problem.weight > 0.0, problem.most_kept, problem.least_kept)


def _only_bandwidth(problem: JointProblem, kept: Floats) -> JointSolution:
    """Solve the ends of the range, where the kept fractions are known and only shares are open."""
    division: Division = divide_min_max(
        problem.curves,
        problem.fixed_s + kept * problem.compute_s,
        problem.fixed_bits + kept * problem.bits,
    )
    kept, finish_s = _keep_more(problem, kept, division)
    return JointSolution(
        kept=kept,
        share=division.share,
        round_s=finish_s,
        bound_s=division.bound_s,
        price=np.zeros(problem.curves.budget.shape[0]),
        status=division.status,
        iterations=division.iterations,
        residual=problem.violation(kept, division.share),
        method="exact, bandwidth only",
    )


def _unspent(problem: JointProblem, stalled: JointSolution) -> JointSolution:
    """Leave the pruning budget unspent, where it is so small that a search in T stalls.

    A device that had all of it would keep `part` less, so nobody can finish sooner by more than that.
    """
    found = _only_bandwidth(problem, _kept_by_need(problem))
    value = (problem.weight * problem.most_kept)[problem.weight > 0.0]
    part = min((float(value.sum()) - problem.least_value) / float(value.min()), 1.0)
    bound_s = max(found.bound_s * (1.0 - part), stalled.bound_s)
    sooner = min(found, stalled, key=lambda solution: solution.round_s)
    best = replace(sooner, bound_s=bound_s)
    return replace(best, status="optimal" if best.gap <= _OPTIMAL_GAP else "stalled")


def _keep_more(problem: JointProblem, kept: Floats, division: Division) -> tuple[Floats, float]:
    """Prune no device more than the finish time asks, at no cost in time."""
    rate = problem.curves.rate(division.share)
    spare = division.round_s - problem.fixed_s - problem.fixed_bits / rate
    free = spare / np.maximum(problem.compute_s + problem.bits / rate, np.finfo(float).tiny)
    return np.clip(free, kept, problem.most_kept), division.round_s


def _newton(problem: JointProblem, blocks: list[Columns]) -> _Point:
    """Search T and the prices together from equal shares; may fail and say so."""
    budget, needed = problem.curves.budget, problem.least_value
    used = problem.curves.load(np.ones(len(problem))) > 0.0
    share, kept, high = _start(problem)
    low = float(np.max(problem.finish_s(problem.least_kept, problem.curves.most())))
    finish_s = high
    price, ratio = first_price(problem, share, kept, high), first_ratio(problem, share)
    converged, step, rough, proved_s = False, 0, _ROUGH, 0.0
    while step < _MOST_STEPS:
        step += 1
        answer = respond(problem, blocks, finish_s, price, ratio, tolerance=rough)
        ratio = answer.log_ratio
        binding = used & (answer.unmet | (answer.load > budget))
        excess = (answer.load - budget) * binding
        short = (answer.value - needed - float(price @ excess)) / needed
        if short < -rough:
            low = max(low, finish_s)
        off = max(float((np.abs(excess) / budget).max()), abs(short))
        slope = answer.dual_by_time(price * binding)
        # The same in ln(T): next to a weak device's limit T runs out of digits before the sums do.
        off_s = (abs(short) * needed + float(price @ np.abs(excess))) / max(slope, 1e-300)
        exact = rough <= _FINE
        if exact and finish_s > proved_s:
            dual = answer.value - float((price * used) @ (answer.load - budget))
            proved_s = finish_s if dual < needed * _SHORT else proved_s
        if min(off, off_s) <= _TOLERANCE and exact:
            converged = True
            break
        if not math.isfinite(off):
            break
        rough = _FINE if min(off, off_s) <= 1e-6 else min(max(0.1 * off, _FINE), _ROUGH)
        move = -short * needed / slope if slope > 0.0 else 0.0
        fresh = finish_s * math.exp(min(max(move, -1.0), 1.0))
        if low <= fresh <= high:
            move = math.log(fresh / finish_s)
            price = price * np.exp(_price_step(answer, budget, binding, move))
        elif (excess > 0.0).any():
            # T is near enough to fill a link: let its price settle before T moves on.
            price = price * np.exp(_price_step(answer, budget, binding, 0.0))
            fresh = finish_s
        else:
            fresh = float(np.clip(_filling_s(answer, budget, binding, finish_s), low, high))
        finish_s = fresh
    return _Point(finish_s, np.where(binding, price, 0.0), answer, converged, step, proved_s)


def _filling_s(answer: BestResponse, budget: Floats, binding: Bools, finish_s: float) -> float:
    """Return the finish time at which the first link is full at these prices.

    Newton's method on the reciprocal of the load, which is nearly linear in T: it stands in for the
    dual's step where that leaves the bracket, next to the limit of a weak device.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        move = (1.0 / budget - 1.0 / answer.load) * answer.load**2 / -answer.load_by_time
    moves = move[binding & np.isfinite(move)]
    return finish_s * float(np.exp(np.max(moves, initial=-0.5) if moves.size else -0.5))


def _price_step(answer: BestResponse, budget: Floats, binding: Bools, move: float) -> Floats:
    """Return the change of ln(price) on every link: Newton on ln(load / budget)."""
    load = np.where(binding, answer.load, budget)
    # With nobody in the interior the load does not answer; move on as if it did, until it does.
    by_price = np.minimum(answer.load_by_price, -1e-3 * load)
    ahead = np.log(load / budget) + answer.load_by_time / load * move
    step = -ahead * load / by_price * binding
    return np.minimum(np.maximum(step, -_LONGEST_PRICE_STEP), _LONGEST_PRICE_STEP)


def _start(problem: JointProblem) -> tuple[Floats, Floats, float]:
    """Return shares, kept fractions and finish time after one sweep of the published algorithm.

    Next to the limit of a weak device the optimum is far nearer to this than to equal shares.
    """
    kept, _ = prune_min_max(problem, problem.curves.equal_shares())
    division = divide_min_max(
        problem.curves,
        problem.fixed_s + kept * problem.compute_s,
        problem.fixed_bits + kept * problem.bits,
        tolerance=_ROUGH,
    )
    kept, finish_s = prune_min_max(problem, division.share)
    return division.share, kept, finish_s


def _least_division(problem: JointProblem) -> Division:
    """Divide the links with every device at its least kept fraction: nobody finishes sooner."""
    return divide_min_max(
        problem.curves,
        problem.fixed_s + problem.least_kept * problem.compute_s,
        problem.fixed_bits + problem.least_kept * problem.bits,
    )


def _at_bottleneck(problem: JointProblem, blocks: list[Columns]) -> JointSolution | None:
    """Return the optimum where one link alone sets it, with everybody on it pruned to the limit.

    That is so when, at the least finish time of all, the other links leave enough unpruned to meet
    the pruning budget. It cannot be so on a single shared link.
    """
    division = _least_division(problem)
    finish_s = division.round_s * (1.0 + 1e-12)
    price = first_price(problem, division.share, problem.least_kept, finish_s)
    ratio = first_ratio(problem, division.share)
    price, answer, steps = prices_at(problem, blocks, finish_s, price, ratio)
    if answer.value < problem.least_value:
        return None
    binding = binding_links(problem, answer) & ~full_links(problem, finish_s)
    point = _Point(finish_s, np.where(binding, price, 0.0), answer, True, steps)
    solution = _certify(
        problem, blocks, point, method="exact, bottleneck", floor_s=division.bound_s
    )
    return solution if solution.status == "optimal" else None


def _nested(problem: JointProblem, blocks: list[Columns], tried: int) -> JointSolution:
    """Search by the slow and safe way, T outside and one price a link inside."""
    division = _least_division(problem)
    start = _start(problem)
    for tolerance in (_NESTED_TOLERANCE, _NESTED_TOLERANCE * 1e-2):
        found = nested_search(problem, blocks, division, start, tolerance=tolerance)
        tried += found.iterations
        point = _Point(found.finish_s, found.price, found.response, True, tried)
        solution = _certify(
            problem, blocks, point, method="exact, nested", floor_s=division.bound_s
        )
        if solution.status == "optimal":
            break
    return solution


def _certify(
    problem: JointProblem,
    blocks: list[Columns],
    point: _Point,
    *,
    method: str,
    floor_s: float = 0.0,
) -> JointSolution:
    """Turn the end of a search into a feasible answer and a proved bound."""
    share = _fill(problem, point.response.share)
    kept, round_s = prune_min_max(problem, share)
    bound_s = floor_s = max(floor_s, point.proved_s)
    if round_s > max(point.finish_s, floor_s) * (1.0 + _GOOD_GAP):
        kept, share, round_s = _relax(problem, blocks, point, (kept, share, round_s))
    if round_s > floor_s * (1.0 + _GOOD_GAP):
        bound_s = max(floor_s, _dual_bound(problem, blocks, point, round_s))
    gap = round_s / bound_s - 1.0 if bound_s > 0.0 else np.inf
    return JointSolution(
        kept=kept,
        share=share,
        round_s=round_s,
        bound_s=bound_s,
        price=point.price,
        status="optimal" if gap <= _OPTIMAL_GAP else "stalled",
        iterations=point.iterations,
        residual=problem.violation(kept, share),
        method=method,
    )


def _relax(
    problem: JointProblem, blocks: list[Columns], point: _Point, best: tuple[Floats, Floats, float]
) -> tuple[Floats, Floats, float]:
    """Return a feasible answer at a finish time hardly later, where shares alone do not give one.

    Next to a weak device's limit the last digits of T are worth more than those of all shares: a
    slightly later T frees enough of the link to meet both the budgets and the pruning budget.
    """
    budget, binding = problem.curves.budget, point.price > 0.0
    price, answer, last = _asked(point.price), point.response, 0.0
    for step in (5e-10, 1e-9, 2e-9, 4e-9):
        trial_s = point.finish_s * (1.0 + step)
        if trial_s >= best[2]:
            break
        # Half of what the later T frees is left on the links, the other half is kept unpruned.
        free = 0.5 * step * answer.dual_by_time(point.price) / max(int(np.sum(binding)), 1)
        left = np.minimum(free / np.where(binding, price, np.inf), 0.5 * budget)
        ahead = answer.load + answer.load_by_time * (step - last) - (budget - left)
        by_price = np.minimum(answer.load_by_price, -1e-9 * budget)
        price = price * np.exp(np.where(binding, np.clip(-ahead / by_price, -0.5, 0.5), 0.0))
        answer, last = respond(problem, blocks, trial_s, price, answer.log_ratio), step
        if np.all(answer.load <= budget) and answer.value >= problem.least_value:
            return answer.kept, _fill(problem, answer.share), trial_s
    return best


def _asked(price: Floats) -> Floats:
    """Return prices with a stand-in for links that do not bind: their devices heed no price."""
    return np.where(price > 0.0, price, float(np.max(price, initial=1e-12)))


def _fill(problem: JointProblem, share: Floats) -> Floats:
    """Scale the shares of every shared link to sum to its budget."""
    load = problem.curves.load(share)
    ratio = problem.curves.budget / np.where(load > 0.0, load, 1.0)
    return np.where(problem.curves.dedicated, 1.0, share * ratio[problem.curves.link])


def _dual_bound(
    problem: JointProblem, blocks: list[Columns], point: _Point, round_s: float
) -> float:
    """Return the largest finish time tried at which the dual proves that nobody can meet it."""
    budget, needed = problem.curves.budget, problem.least_value
    asked = _asked(point.price)
    slope = max(point.response.dual_by_time(point.price), 1e-12 * needed)
    spill = float(point.price @ (point.response.load - budget))
    ahead = (point.response.value - spill - needed) / slope + np.log(round_s / point.finish_s)
    step = max(1.02 * ahead, 0.0) + _FIRST_STEP
    floor_s = float(np.max(problem.finish_s(problem.least_kept, problem.curves.most())))
    for _ in range(8):
        trial_s = round_s * float(np.exp(-step))
        if trial_s <= floor_s:
            return floor_s
        answer = respond(problem, blocks, trial_s, asked, point.response.log_ratio)
        dual = answer.value - float(point.price @ (answer.load - budget))
        if dual < needed * _SHORT:
            return trial_s
        step *= 6.0
    return floor_s
