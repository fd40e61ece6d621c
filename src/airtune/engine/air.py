"""The links of one round, slot by slot, and how the uplink is divided in each.

The plan's shares hold in the first slot; at every later edge the method is asked once, and its
answer holds until the next. All devices of a plan share one air: those that train the whole model
and those that are cut go through its slots in step, and a method is asked when all have come to the
slot, with what each has yet to send. The downlink of a shared link carries one thing at a time: first
the broadcast of adapters, of which a cut device's are a part, then what is each cut device's own.
"""

from __future__ import annotations

import numpy as np

from airtune.cost.delay import gradient_bps
from airtune.engine.checks import Divide, check_shares
from airtune.engine.clock import transfer
from airtune.fleet.fleet import Fleet
from airtune.fleet.rates import downlink_bps, uplink_bps
from airtune.plan import Floats, Ints, LinkState, RoundPlan

_REMEMBERED_SLOTS = 1024
"""Slots whose links are kept at hand; any can be drawn again."""


class Air:
    """The links of a round for all devices of its plan."""

    def __init__(
        self,
        fleet: Fleet,
        plan: RoundPlan,
        divide: Divide,
        *,
        start_s: float,
        usual_bytes: Floats | None = None,
    ) -> None:
        """Check the plan's own shares.

        Args:
            fleet: devices and links.
            plan: n devices.
            divide: asked at each slot edge after the first.
            start_s: virtual time at which the round begins.
            usual_bytes: what `divide` is told of a device that has not begun to send, shape (n,).

        Raises:
            MethodError: if the plan's shares give out more than a link has.
        """
        self._fleet, self._plan, self._divide = fleet, plan, divide
        self._start_s = start_s
        self._links: dict[int, LinkState] = {}
        self._shares: dict[int, Floats] = {0: plan.assignments.share}
        self._alone: dict[int, Floats] = {}
        self._down: dict[int, Floats] = {}
        count = len(plan.assignments)
        self._told = np.zeros(count) if usual_bytes is None else usual_bytes.copy()
        self._free_s = np.zeros(len(fleet.specs))
        check_shares(plan.assignments.share, plan.assignments, self.links(0))

    def broadcast(self, places: Ints, size_bytes: float, *, until_s: float) -> None:
        """Occupy downlinks until the slowest of some rows on each has what is sent to all.

        Args:
            places: rows of the plan that listen to all of it.
            size_bytes: of the broadcast.
            until_s: nothing is sent after this.
        """
        done = transfer(
            self.part(places).broadcast,
            start_s=np.zeros(len(places)),
            slot_s=self.slot_s,
            size_bytes=np.full(len(places), size_bytes),
            until_s=until_s,
        )
        device = self._plan.assignments.device[places]
        heard = ~self.links(0).dedicated(device) & np.isfinite(done.finish_s)
        np.maximum.at(self._free_s, self._fleet.link[device[heard]], done.finish_s[heard])

    def free_s(self, device: Ints) -> Floats:
        """Return when the broadcast is over on each device's link, seconds after the start, (m,)."""
        return self._free_s[self._fleet.link[device]]

    @property
    def slot_s(self) -> float | None:
        """Length of a slot; None = one without end."""
        return self._fleet.slot_s

    @property
    def shares(self) -> dict[int, Floats]:
        """The shares of every slot that was used so far, shape (n,) each."""
        return self._shares

    def links(self, slot: int) -> LinkState:
        """Return all links of the fleet in a slot."""
        if slot not in self._links:
            if len(self._links) >= _REMEMBERED_SLOTS:
                self._links.clear()
            time_s = self._start_s + slot * (self.slot_s or 0.0)
            self._links[slot] = self._fleet.links_at(self._plan.round, slot, time_s)
        return self._links[slot]

    def part(self, places: Ints) -> Part:
        """Return the air as some rows of the plan have it."""
        return Part(self, places, self._plan.assignments.device[places])

    def tell(self, places: Ints, remaining_bytes: Floats) -> None:
        """Note what some rows have yet to send."""
        self._told[places] = remaining_bytes

    def share(self, slot: int, places: Ints) -> Floats:
        """Return the shares of some rows in a slot, asking for those of all if it is a new one.

        Raises:
            MethodError: if the answer gives out more than a link has.
        """
        if slot not in self._shares:
            links = self.links(slot)
            self._shares[slot] = check_shares(
                self._divide(links, self._told.copy()), self._plan.assignments, links
            )
        return self._shares[slot][places]

    def alone(self, slot: int) -> Floats:
        """Return the uplink rate of every device of the plan if it had its link to itself, (n,)."""
        if slot not in self._alone:
            device = self._plan.assignments.device
            self._alone[slot] = uplink_bps(self.links(slot), np.ones(len(device)), device)
        return self._alone[slot]

    def down(self, slot: int) -> Floats:
        """Return the whole downlink's rate of every device of the plan, (n,)."""
        if slot not in self._down:
            self._down[slot] = downlink_bps(self.links(slot), self._plan.assignments.device)
        return self._down[slot]


class Part:
    """The air as m rows of a plan have it; rates in bit/s, shape (m,), for `clock.transfer`."""

    def __init__(self, air: Air, places: Ints, device: Ints) -> None:
        """Hold the rows; made by `Air.part`."""
        self._air, self.places, self.device = air, places, device

    @property
    def slot_s(self) -> float | None:
        """Length of a slot; None = one without end."""
        return self._air.slot_s

    @property
    def free_s(self) -> Floats:
        """When the downlink of each row's link is free, seconds after the start of the round."""
        return self._air.free_s(self.device)

    def links(self, slot: int) -> LinkState:
        """Return all links of the fleet in a slot."""
        return self._air.links(slot)

    def tell(self, remaining_bytes: Floats) -> None:
        """Note what the rows have yet to send: what the method is told at the next slot edge."""
        self._air.tell(self.places, remaining_bytes)

    def up(self, slot: int, remaining_bytes: Floats) -> Floats:
        """Return the uplink under the slot's division."""
        share = self._air.share(slot, self.places)
        return uplink_bps(self.links(slot), share, self.device)

    def alone(self, slot: int, remaining_bytes: Floats) -> Floats:
        """Return the uplink of devices that take turns, each with its link to itself."""
        return self._air.alone(slot)[self.places]

    def broadcast(self, slot: int, remaining_bytes: Floats) -> Floats:
        """Return the downlink of what is sent to all, or to one while nobody else is sent to."""
        return self._air.down(slot)[self.places]

    def unicast(self, slot: int, remaining_bytes: Floats) -> Floats:
        """Return the downlink of what is each device's own."""
        return gradient_bps(self.links(slot), self.device, remaining_bytes)
