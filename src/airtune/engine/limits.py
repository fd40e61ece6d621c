"""Who takes part in a round: who is there and asked, and stays within its bytes and joules."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from airtune.cost import predict
from airtune.errors import InfeasibleError
from airtune.keys import generator
from airtune.plan import Bools, Floats, LinkState, Problem, RoundPlan
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
        least = np.where(self._there, self._least_j, np.nan)
        if self._was_met or not self._there.any() or np.isnan(least[self._there]).any():
            return
        device = int(np.nanargmin(least))
        raise InfeasibleError(
            f"no device keeps {self._problem.joules_per_round:g} J a round "
            f"(limits.joules_per_round): the least is {least[device]:.4g} J, of "
            f"{self._problem.devices.names[device]} with its link to itself; raise the limit above "
            "that, or lower train.local_steps"
        )

    def _energy_faults(
        self, plan: RoundPlan, *, links: LinkState, flops_per_s: Floats
    ) -> tuple[str, ...]:
        limit, assignments = self._problem.joules_per_round, plan.assignments
        if limit is None or not len(assignments):
            return ("",) * len(assignments)
        told_j = predict(self._problem, assignments, links=links, flops_per_s=flops_per_s).energy_j
        is_over = np.isfinite(told_j) & (told_j > limit)
        self._was_met |= not bool(is_over.all())
        if is_over.any():
            alone = replace(assignments, share=np.ones(len(assignments)))
            least = predict(self._problem, alone, links=links, flops_per_s=flops_per_s).energy_j
            self._least_j[assignments.device[is_over]] = np.minimum(least, told_j)[is_over]
        return tuple(
            f"its round would take {joules:.4g} J, more than {limit:g} J (limits.joules_per_round)"
            if over
            else ""
            for joules, over in zip(told_j.tolist(), is_over, strict=True)
        )


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
