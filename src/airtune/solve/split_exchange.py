"""Exchanges of one or two devices' lines: what is left to gain where one line counts."""

from __future__ import annotations

import numpy as np

from airtune.plan import Ints
from airtune.solve.split_menu import Prices, SplitMenu
from airtune.solve.split_problem import SLACK, SplitSolution, sent_s_of, solution_of

_MOST_EXCHANGES = 40
_LINES_TRIED = 24
_JUDGED = 160
_MANY = 32
"""Devices from which half the lines and a third of the exchanges are judged."""


def exchange(menu: SplitMenu, found: SplitSolution, prices: Prices) -> SplitSolution:
    """Return what exchanges of one or two devices' lines make of a choice; for few devices.

    Exchanges are ranked by their price; the best are judged exactly, all at once.
    """
    for _ in range(_MOST_EXCHANGES):
        trials = _neighbours(menu, found, prices)
        room = menu.problem.room_each(trials, found.step_s * (1.0 - 1e-9))
        if not trials.size or float(np.max(room)) < 0.0:
            break
        found = solution_of(menu.problem, trials[int(np.argmax(room))])
    return found


def _neighbours(menu: SplitMenu, found: SplitSolution, prices: Prices) -> Ints:
    """Return the choices one or two exchanges away that cost least at these prices, (m, n)."""
    problem, n = menu.problem, len(menu.problem)
    plain = menu.priced(menu.shares(sent_s_of(problem, found)), prices)
    lines = np.argsort(plain + prices.loss * menu.loss, axis=1)[
        :, : _LINES_TRIED if n <= _MANY else _LINES_TRIED // 2
    ]
    here = np.argmax(menu.order == found.index[:, None], axis=1)
    at, line = np.repeat(np.arange(n), lines.shape[1]), lines.ravel()
    usable = np.isfinite(plain[at, line]) & (line != here[at])
    at, line = at[usable], line[usable]
    saved = plain[at, line] - plain[at, here[at]]
    spent = menu.loss[at, line] - menu.loss[at, here[at]]
    slack = problem.loss_budget + SLACK - found.loss
    pair = np.where(spent[:, None] + spent <= slack, saved[:, None] + saved, np.inf)
    pair = np.where(at[:, None] < at, pair, np.inf)
    np.fill_diagonal(pair, np.where(spent <= slack, saved, np.inf))
    count = min(_JUDGED if n <= _MANY else _JUDGED // 3, pair.size)
    best = np.argpartition(pair, count - 1, axis=None)[:count] if count else np.zeros(0, np.int64)
    best = best[np.isfinite(pair.ravel()[best])]
    one, other = np.unravel_index(best, pair.shape)
    trials = np.repeat(here[None, :], best.size, axis=0)
    rows = np.arange(best.size)
    trials[rows, at[one]] = line[one]
    trials[rows, at[other]] = line[other]
    return np.asarray(menu.order[np.arange(n), trials], np.int64)
