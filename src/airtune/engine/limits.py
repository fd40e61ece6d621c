"""Who takes part in a round: who is there and asked, and stays within its bytes and joules."""

from __future__ import annotations

import math

import numpy as np

from airtune.cost import alone_j, predict
from airtune.errors import InfeasibleError
from airtune.keys import generator
from airtune.plan import Bools, Floats, Ints, LinkState, Problem, RoundPlan
from airtune.wire.traffic_budget import TrafficBudget


class RoundLimits:
    """The limits of a run's devices: participation, bytes of a month, joules of a round."""

    def __init__(
        self, problem: Problem, traffic_budget: TrafficBudget, *, participation: float
    ) -> None:
        """Begin with nobody there.

        Args:
            problem: unmasked: with powers and limits.
            traffic_budget: bytes that each device may still receive and send.
            participation: fraction of the available devices that is asked, in (0, 1].
        """
        self.traffic_budget = traffic_budget
        self._problem, self._participation = problem, participation
        self._there = np.zeros(len(problem.devices), np.bool_)
        self._least_j = np.full(len(problem.devices), np.nan)
        self._was_met = False

    def asked(self, round: int, available: Bools) -> Bools:
        """Return who takes part: a sample of those that are there, at least one of them."""
        self._there = available
        stream = generator(self._problem.seed, "participation", round)
        return sampled(available, self.traffic_budget.short, self._participation, stream)

    def faults(
        self, plan: RoundPlan, most_bytes: Floats | None, *, links: LinkState, flops_per_s: Floats
    ) -> tuple[str, ...]:
        """Return why a row's device is left out, empty where it is not.

        Args:
            plan: n devices.
            most_bytes: what the round can take of each, shape (n,); None = nothing is capped.
            links: links of the whole fleet when the round begins.
            flops_per_s: speeds of the whole fleet.
        """
        device = plan.assignments.device
        short = ("",) * len(device)
        if most_bytes is not None:
            short = self.traffic_budget.faults(device, most_bytes)
        joules = self._energy_faults(plan, links=links, flops_per_s=flops_per_s)
        return tuple(one or other for one, other in zip(short, joules, strict=True))

    @property
    def is_used_up(self) -> bool:
        """Whether all that are there have too few bytes left of this month."""
        return bool(self._there.any() and self.traffic_budget.short[self._there].all())

    def check_energy(self) -> None:
        """Refuse a limit that no device has ever met and none that is there meets.

        Raises:
            InfeasibleError: with the least energy that a device could do with, and the device.
        """
        if not self._was_met:
            refuse_energy(self._problem, self._least_j, np.flatnonzero(self._there))

    def _energy_faults(
        self, plan: RoundPlan, *, links: LinkState, flops_per_s: Floats
    ) -> tuple[str, ...]:
        limit, assignments = self._problem.joules_per_round, plan.assignments
        if limit is None or not len(assignments):
            return ("",) * len(assignments)
        told_j = predict(self._problem, assignments, links=links, flops_per_s=flops_per_s).energy_j
        least_j = alone_j(self._problem, assignments, links=links, flops_per_s=flops_per_s)
        is_over = np.isfinite(least_j) & (least_j > limit)
        self._least_j[assignments.device[is_over]] = least_j[is_over]
        if not is_over.any():
            is_over = _over_together(told_j, limit)
        self._was_met |= not bool(is_over.all())
        return tuple(
            f"its round would take {joules:.4g} J, more than {limit:g} J (limits.joules_per_round)"
            if over
            else ""
            for joules, over in zip(told_j.tolist(), is_over, strict=True)
        )


def refuse_energy(problem: Problem, least_j: Floats, device: Ints) -> None:
    """Refuse the limit of energy where some devices are known to take more, each of them.

    Args:
        problem: has the limit and the names.
        least_j: least joules of every device of the fleet; not finite where that is not known.
        device: those that could take part, (n,); nobody = nothing is refused.

    Raises:
        InfeasibleError: with the least of them, and the device.
    """
    limit, least = problem.joules_per_round, least_j[device]
    if limit is None or not device.size or not np.all(np.isfinite(least) & (least > limit)):
        return
    first = int(np.argmin(least))
    raise InfeasibleError(
        f"no device can stay within {limit:g} J a round (limits.joules_per_round): the least is "
        f"{least[first]:.4g} J, of {problem.devices.names[device[first]]} with its link to itself; "
        "raise the limit above that, or lower train.local_steps"
    )


def _over_together(told_j: Floats, limit_j: float) -> Bools:
    """Return who is left out where each could take part, but not all together; shape (n,).

    Fewer devices share the link and wait for each other less, so where all are above the limit
    those that take least, half of them, are asked again.
    """
    is_over = np.isfinite(told_j) & (told_j > limit_j)
    if is_over.all():
        is_over[np.argsort(told_j, kind="stable")[: len(told_j) // 2]] = False
    return np.asarray(is_over, np.bool_)


def with_data(available: Bools, weight: Floats) -> Bools:
    """Return which of the available devices have rows to train on; all where weights say nothing."""
    return np.asarray(available & ((weight > 0.0) | ~np.any(weight > 0.0)), np.bool_)


def sampled(
    available: Bools, short: Bools, participation: float, stream: np.random.Generator
) -> Bools:
    """Return who takes part: a sample of those that are there, at least one of them.

    Those that were told too much for their month are sampled by themselves, at least one too: they
    may hold what they are told now, and take no place of those that do.

    Args:
        available: who is there, shape (devices,).
        short: who was last told more than its month's bytes hold, shape (devices,).
        participation: fraction that is asked, in (0, 1].
        stream: of this round.
    """
    if participation == 1.0:
        return available
    asked = np.zeros(available.shape, np.bool_)
    for there in map(np.flatnonzero, (available & ~short, available & short)):
        if len(there):
            count = asked_of(len(there), participation)
            asked[stream.choice(there, size=count, replace=False)] = True
    return asked


def asked_of(there: int, participation: float) -> int:
    """Return how many of the devices that are there a round asks: at least one, halves up.

    >>> asked_of(25, 0.1), asked_of(34, 0.1), asked_of(3, 0.1)
    (3, 3, 1)
    """
    return max(1, math.floor(participation * there + 0.5))
