"""What a solution of auto tells the record: how good it is proved to be, and what more would save."""

from __future__ import annotations

import numpy as np

from airtune.methods.mixed_choice import Menus, MixedChoice
from airtune.plan import Floats, Note, Solution
from airtune.solve import MixedPrices, MixedSolution


def solution_of(choice: MixedChoice, solved: MixedSolution) -> Solution:
    """Return the solution for the record: seconds of the round, gap and effort."""
    return Solution(
        status=solved.status,
        objective=choice.round_s,
        iterations=solved.boxes,
        residual=0.0,
        gap=max(solved.gap, 0.0),
        method=f"branch and bound over round times; {choice.source}",
    )


def notes_of(menus: Menus, choice: MixedChoice, solved: MixedSolution) -> dict[str, Note]:
    """Return ln K and the prices: what ln(K T) falls by for more of each limit."""
    weight, prices = menus.seen.of(menus.seen.weight), _prices(menus, solved)
    notes: dict[str, Note] = {
        "log_rounds": choice.log_rounds,
        "mean_pruned": float(np.sum(weight * menus.lines.pruned[choice.index])),
        "cut_devices": float(np.sum(menus.lines.cut[choice.index] > 0)),
        "price_share": (tuple(prices.share[0].tolist()),),
        "price_second": float(prices.second[0].sum()),
        "price_server_memory": float(prices.memory[0]),
        "price_pruned": float(prices.pruned[0]),
    }
    if np.isfinite(menus.most_log_rounds):
        notes["price_rounds"] = float(prices.rounds[0])
    return notes


def prices_of_devices(menus: Menus, choice: MixedChoice, solved: MixedSolution) -> Floats:
    """Return the part of ln(K T) that goes without each device, at the bound's prices, shape (m,)."""
    problem, prices = menus.problem, _prices(menus, solved)
    steps = problem.workload.local_steps
    server_s = steps * menus.lines.server_flops[choice.index] / problem.server_flops_per_s
    share = prices.share[0][menus.curves.link] * choice.share
    return np.asarray(np.maximum(share + prices.second[0].sum() * server_s, 0.0), np.float64)


def _prices(menus: Menus, solved: MixedSolution) -> MixedPrices:
    return MixedPrices.split(solved.prices[None], menus.curves.budget.size)
