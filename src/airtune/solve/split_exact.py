"""Branch and bound over the choices of few devices: the exact optimum where few choices are left.

Devices get their lines one after the other; one that has none yet counts with an ideal line, the
least of each column of its menu. A partial choice that breaks the loss budget or, ideal as it is,
does not fit the links within the best step known has no completion that is better.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from airtune.plan import Bools, Floats, Ints
from airtune.solve.split_problem import SLACK, SplitProblem, SplitSolution, solution_of

_MOST_CHOICES = 20_000
_DIGITS = 1e-9
"""A step that is shorter by less than this is no better."""


def best_of_all(problem: SplitProblem, found: SplitSolution) -> SplitSolution | None:
    """Return the optimum with its bound; None where too many choices may be better than `found`."""
    relaxed, n = _with_ideal_line(problem), len(problem)
    trials = np.full((1, n), problem.bits.shape[1])
    wanted = found.step_s * (1.0 - _DIGITS)
    menus = [
        _kept(relaxed, _branched(trials, device, np.flatnonzero(lines)), wanted)[:, device]
        for device, lines in enumerate(_undominated(problem))
    ]
    for device in sorted(range(n), key=lambda row: menus[row].size):
        if trials.shape[0] * menus[device].size > _MOST_CHOICES:
            return None
        trials = _kept(relaxed, _branched(trials, device, menus[device]), wanted)
    while trials.size:
        room = problem.room_each(trials, found.step_s * (1.0 - _DIGITS))
        first = int(np.argmax(room))
        if room[first] >= 0.0:
            trial = solution_of(problem, trials[first])
            found = trial if trial.step_s < found.step_s else found
        room[first] = -np.inf
        trials = trials[room >= 0.0]
    return replace(
        found, bound_s=found.step_s * (1.0 - _DIGITS), status="optimal", method="branch and bound"
    )


def _branched(trials: Ints, device: int, lines: Ints) -> Ints:
    """Return every trial with every one of these lines of a device."""
    branches = np.repeat(trials, lines.size, axis=0)
    branches[:, device] = np.tile(lines, trials.shape[0])
    return branches


def _kept(relaxed: SplitProblem, trials: Ints, step_s: float) -> Ints:
    """Return the trials within the loss budget that may be done in `step_s`."""
    loss = np.sum(relaxed.loss[np.arange(len(relaxed)), trials], axis=1)
    trials = trials[loss <= relaxed.loss_budget + SLACK]
    return trials[relaxed.room_each(trials, step_s) >= 0.0]


def _with_ideal_line(problem: SplitProblem) -> SplitProblem:
    """Return the problem with one more line, the least of each column."""

    def lengthened(table: Floats) -> Floats:
        least = np.min(np.where(problem.allowed, table, np.inf), axis=1)
        return np.column_stack([table, least])

    return replace(
        problem,
        forward_s=lengthened(problem.forward_s),
        bits=lengthened(problem.bits),
        down_s=lengthened(problem.down_s),
        backward_s=lengthened(problem.backward_s),
        server_s=lengthened(problem.server_s),
        loss=lengthened(problem.loss),
        allowed=np.column_stack([problem.allowed, np.ones(len(problem), np.bool_)]),
    )


def _undominated(problem: SplitProblem) -> Bools:
    """Return which lines may be used and have none that is as good in everything, shape (n, k)."""
    table = np.stack(
        [
            problem.forward_s,
            problem.bits,
            problem.down_s,
            problem.backward_s,
            problem.server_s,
            problem.loss,
        ]
    )
    line = np.arange(table.shape[2])
    as_good = np.all(table[:, :, None, :] <= table[..., None], axis=0)
    as_good &= problem.allowed[:, None, :]
    equal = as_good & np.swapaxes(as_good, 1, 2)
    better = as_good & ~(equal & (line >= line[:, None]))
    return np.asarray(problem.allowed & ~better.any(axis=2))
