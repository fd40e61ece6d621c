"""The uplink of a replayed clock whose devices have sent already."""

from __future__ import annotations

from collections.abc import Mapping

from airtune.engine.remote.devices import Remote
from airtune.engine.uplink import Sent, Uplink
from airtune.model.state import GlobalState
from airtune.plan import Problem, RoundPlan
from airtune.work.jobs import Outcome


class Received(Uplink):
    """An uplink over which the devices have sent already: only sizes are left to know."""

    def __init__(self, problem: Problem, remote: Remote) -> None:
        """Begin with nothing sent."""
        super().__init__(problem)
        self._remote = remote
        self.coded_bytes: dict[int, int] = {}
        """By device, of the round at hand."""

    def send(self, plan: RoundPlan, state: GlobalState, outcomes: Mapping[int, Outcome]) -> Sent:
        """Return the outcomes as they came, and what they took."""
        size_bytes = self.sizes(
            plan,
            {
                index: self.coded_bytes[device]
                for index, device in enumerate(plan.assignments.device.tolist())
                if device in self.coded_bytes
            },
        )
        return Sent(dict(outcomes), size_bytes, {})

    def settle(self, sent: Sent, state: GlobalState, came: Mapping[int, Outcome]) -> None:
        """Tell each device with its next task that this update counted."""
        for outcome in came.values():
            if outcome.update is not None:
                self._remote.counted[outcome.device] = outcome.update.round
