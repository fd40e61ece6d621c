"""What `limits.joules_per_round` leaves out of a round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from airtune.cost import predict
from airtune.errors import InfeasibleError
from airtune.plan import Bools, Floats, LinkState, Problem, RoundPlan


class EnergyLimit:
    """The most energy of a device in a round, and the least that rounds were seen to take."""

    def __init__(self, problem: Problem) -> None:
        """Take the limit of an unmasked problem; None = no limit."""
        self._problem = problem
        self._least_j = np.full(len(problem.devices), np.nan)
        self._was_met = False

    def faults(self, plan: RoundPlan, *, links: LinkState, flops_per_s: Floats) -> tuple[str, ...]:
        """Return why a row's device would use too much energy, empty where it would not.

        Args:
            plan: n devices.
            links: links of the whole fleet when the round begins.
            flops_per_s: speeds of the whole fleet.

        Returns:
            A sentence for each device of the plan, shape (n,).
        """
        limit, told = self._problem.joules_per_round, plan.assignments
        if limit is None or not len(told):
            return ("",) * len(told)
        told_j = predict(self._problem, told, links=links, flops_per_s=flops_per_s).energy_j
        is_over = np.isfinite(told_j) & (told_j > limit)
        self._was_met |= not bool(is_over.all())
        if is_over.any():
            alone = replace(told, share=np.ones(len(told)))
            least = predict(self._problem, alone, links=links, flops_per_s=flops_per_s).energy_j
            self._least_j[told.device[is_over]] = np.minimum(least, told_j)[is_over]
        return tuple(
            f"its round would take {joules:.4g} J, more than {limit:g} J (limits.joules_per_round)"
            if over else ""
            for joules, over in zip(told_j.tolist(), is_over, strict=True)
        )  # fmt: skip

    def check(self, there: Bools) -> None:
        """Refuse a limit that no device has ever met and none that is there meets.

        Raises:
            InfeasibleError: with the least energy that a device could do with, and the device.
        """
        least = np.where(there, self._least_j, np.nan)
        if self._was_met or not there.any() or np.isnan(least[there]).any():
            return
        device = int(np.nanargmin(least))
        raise InfeasibleError(
            f"no device keeps {self._problem.joules_per_round:g} J a round "
            f"(limits.joules_per_round): the least is {least[device]:.4g} J, of "
            f"{self._problem.devices.names[device]} with its link to itself; raise the limit above "
            "that, or lower train.local_steps"
        )
