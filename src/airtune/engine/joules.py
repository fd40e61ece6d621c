"""What `limits.joules_per_round` leaves out of a round."""

from __future__ import annotations

import numpy as np

from airtune.cost import predict
from airtune.plan import Floats, LinkState, Problem, RoundPlan


def over_joules(
    problem: Problem, plan: RoundPlan, *, links: LinkState, flops_per_s: Floats
) -> tuple[str, ...]:
    """Return why a row's device would use too much energy, empty where it would not.

    Args:
        problem: unmasked; its `joules_per_round` is the limit.
        plan: n devices.
        links: links of the whole fleet when the round begins.
        flops_per_s: speeds of the whole fleet.

    Returns:
        A sentence for each device of the plan, shape (n,).
    """
    limit, count = problem.joules_per_round, len(plan.assignments)
    if limit is None or not count:
        return ("",) * count
    cost = predict(problem, plan.assignments, links=links, flops_per_s=flops_per_s)
    return tuple(
        f"its round would take {joules:.4g} J, more than {limit:g} J (limits.joules_per_round)"
        if np.isfinite(joules) and joules > limit else ""
        for joules in cost.energy_j.tolist()
    )  # fmt: skip
