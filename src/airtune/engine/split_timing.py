"""What a split round costs in virtual time, from the bytes that really crossed; numpy only.

All devices in one pass (a shared server, or a copy for each):

    step = max_i (forward_i + upload_i) + server (all that arrived) + max_i (download_i + backward_i)

The uplink is divided by the slot's shares. What the server returns is each device's own, so the
downlink of a shared link is divided too, such that all there end together, from when the broadcast to
devices that train the whole model is over there. A device begins its first
step as soon as it has its adapters, and sends them back when its own last step is done. A
sequential server serves one device after the other, each with its link to itself: adapters,
steps, adapters. Transfers are integrated over slots. A device whose link carries nothing, that is
lost, or whose work was refused, is not waited for. Where labels stay, the two crossings more are
charged with the two that there are anyway. With a deadline, a device stops
after the step behind which another as long would leave it no time to send its adapters, at the rate
at which its last tensor went; in a step that the deadline interrupts, it has those of the step
before. `stopped_after` says so, and what it had learnt by then counts once the round is timed with as
many steps. Whoever has not done one, or not sent its adapters by then, is late.

Source: Split Fine-Tuning for Large Language Models in Wireless Networks (arXiv 2501.09237);
slots, the division of the downlink and the overlap with the exchange are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from airtune.cost.split import SplitCost
from airtune.engine.air import Part
from airtune.engine.clock import Process, RatesAt
from airtune.engine.timing import RoundLog, Tell, Timing, nobody, settled
from airtune.fleet.fleet import Fleet
from airtune.plan import Bools, Floats, Ints, Problem, RoundPlan


@dataclass(frozen=True, slots=True)
class Crossings:
    """What crossed in a split round of m devices."""

    up_bytes: Floats
    """(steps, m); 0 = the device was not in the step."""
    down_bytes: Floats
    """(steps, m)"""
    computed: Floats
    """(steps, m): fraction of a step's samples that the device ran forward."""
    adapter_up_bytes: Floats
    """(m,)"""
    adapter_down_bytes: Floats
    """(m,)"""
    lost: Bools
    """(m,): vanished in its last step, between forward and backward."""
    refused: Bools
    """(m,): put out of the round in its last step."""
    order: Ints
    """(m,): in which a sequential server serves."""

    @property
    def last_step(self) -> Ints:
        """The step of each device after which it is done, (m,); -1 for one that never began."""
        steps = np.arange(len(self.up_bytes))[:, None]
        return np.asarray(np.max(np.where(self.up_bytes > 0, steps, -1), axis=0, initial=-1))


@dataclass(frozen=True, slots=True)
class Step:
    """When the devices of a plan did what in their first step, seconds after the round's start."""

    forward_s: Floats
    """End of each phase, (m,); NaN for a device that did not come so far."""
    upload_s: Floats
    download_s: Floats
    backward_s: Floats
    server: tuple[tuple[float, float], ...]
    """Spans in which the server computed: one for all, or one a device served."""


@dataclass(frozen=True, slots=True)
class SplitTiming:
    """A split round on the virtual clock."""

    timing: Timing
    first: Step
    step_s: Floats
    """Seconds of every step; of a sequential server's, the mean over the devices it served."""
    server_s: Floats
    """Seconds that the server computed in every step, likewise."""
    stopped_after: Ints
    """Steps after which a device stopped, lest it miss the deadline, (m,); 0 = it did not."""


@dataclass(slots=True)
class _Clock:
    """What a round's steps are timed with, and what comes of it."""

    problem: Problem
    air: Part
    cost: SplitCost
    crossed: Crossings
    speed: Floats
    log: RoundLog
    may_stop: bool
    went_s: Floats
    """Seconds a byte of each device's last upload, (m,)."""
    finish_s: Floats
    """When the adapters were back; inf where they never are, (m,)."""
    stopped_after: Ints
    moments: Floats
    """(4, m): ends of forward, upload, download and backward of the first step."""
    server: list[tuple[float, float]] = field(default_factory=list)
    stepped_s: float = 0.0
    """When the last step was over."""

    def fetched(self, start_s: Floats) -> Process[Floats]:
        """Bring the adapters; returns when they are there."""
        return self.log.receive(self.air.broadcast, start_s, self.crossed.adapter_down_bytes)

    def uploaded(
        self, rates: RatesAt, step: int, start_s: Floats, tell: Tell = nobody
    ) -> Process[Floats]:
        """Let devices run forward and send; returns when the server has it, inf = not at all."""
        up_bytes, flops = (
            self.crossed.up_bytes[step],
            self.cost.forward_flops * self.crossed.computed[step],
        )
        forward_s = self.log.compute(start_s, flops / self.speed, flops)
        there_s = yield from self.log.send(rates, forward_s, up_bytes, tell=tell, is_step=True)
        came = np.isfinite(there_s) & (up_bytes > 0)
        self.went_s[came] = (there_s[came] - forward_s[came]) / up_bytes[came]
        self.note(step, 0, forward_s)
        self.note(step, 1, there_s)
        return there_s

    def served(self, step: int, start_s: float, came: Bools) -> float:
        """Let the server compute; returns when it is done."""
        each_s = self.cost.server_flops * came / self.problem.server_flops_per_s
        end_s = start_s + float(each_s.sum())
        self.log.server_s += each_s
        if step == 0:
            self.server.append((start_s, end_s))
        return end_s

    def learnt(self, rates: RatesAt, step: int, start_s: Floats) -> Process[Floats]:
        """Return gradients and let devices run backward; returns when they are done.

        On a shared link they wait until the broadcast of adapters is over.
        """
        start_s = np.maximum(start_s, self.air.free_s)
        there_s = yield from self.log.receive(
            rates, start_s, self.crossed.down_bytes[step], is_step=True
        )
        flops = self.cost.backward_flops
        end_s = self.log.compute(there_s, flops / self.speed, flops)
        self.note(step, 2, there_s)
        self.note(step, 3, end_s)
        return end_s

    def sent(self, rates: RatesAt, start_s: Floats, tell: Tell = nobody) -> Process[Floats]:
        """Send the adapters back; returns when they are there."""
        return self.log.send(rates, start_s, self.crossed.adapter_up_bytes, tell=tell)

    def note(self, step: int, phase: int, end_s: Floats) -> None:
        """Remember when a phase of the first step ended."""
        known = np.isfinite(end_s) & (step == 0)
        self.moments[phase, known] = end_s[known]

    def stops(self, step: int, end_s: float, step_s: float) -> Bools:
        """Return who stops after a step, and note it: another would end behind the deadline, (m,)."""
        back_s = end_s + self.went_s * self.crossed.adapter_up_bytes
        has_more = (self.crossed.last_step > step) & self.goes_on(step)
        stops = np.asarray(has_more & (back_s + step_s > self.log.until_s) & self.may_stop)
        self.stopped_after[stops] = np.where(back_s > self.log.until_s, step, step + 1)[stops]
        return stops

    def gives_up(self, step: int, who: Bools) -> None:
        """Note who the deadline found in a step: what it had before is sent instead."""
        self.stopped_after[who & (self.stopped_after == 0) & self.may_stop] = step

    def goes_on(self, step: int) -> Bools:
        """Return who takes the gradient of a step: not who is lost or refused in it, (m,)."""
        out = (self.crossed.lost | self.crossed.refused) & (self.crossed.last_step == step)
        return np.asarray((self.crossed.up_bytes[step] > 0) & ~out)


def split_round_time(
    problem: Problem,
    fleet: Fleet,
    plan: RoundPlan,
    air: Part,
    *,
    cost: SplitCost,
    crossed: Crossings,
    faults: list[str],
    may_stop: bool = True,
) -> Process[SplitTiming]:
    """Let a split round pass on the virtual clock.

    Args:
        problem: unmasked; its `work` says how the server serves.
        fleet: devices and links.
        plan: of the m cut devices alone.
        air: the links as they have them.
        cost: of the plan.
        crossed: what really went over the cut; nothing for a device with a fault.
        faults: why a device did not even begin; empty where it did.
        may_stop: devices stop early where the deadline leaves no time for another step.
    """
    device = plan.assignments.device
    count, until_s = len(device), plan.until_s(problem)
    clock = _Clock(
        problem,
        air,
        cost,
        crossed,
        fleet.flops_at(plan.round)[device],
        RoundLog(air, until_s),
        may_stop,
        went_s=np.zeros(count),
        finish_s=np.full(count, np.inf),
        stopped_after=np.zeros(count, np.int64),
        moments=np.full((4, count), np.nan),
    )
    serve = _in_turn if problem.work.server == "sequential" else _together
    step_s, server_s = yield from serve(clock)
    lost = {
        row: f"lost between forward and backward in step {crossed.last_step[row]}"
        for row in np.flatnonzero(crossed.lost).tolist()
    }
    # what was refused is known by its answer, and not waited for
    ends_s = np.where(crossed.refused, 0.0, clock.finish_s)
    status, reasons = settled(faults, ends_s, until_s, absent=lost)
    back_s = clock.finish_s[(status == "ok") & np.isfinite(clock.finish_s)]
    end_s = until_s if np.any(status == "late") else np.max(back_s, initial=clock.stepped_s)
    timing = clock.log.timing(
        plan,
        status,
        reasons,
        finish_s=clock.finish_s,
        peak_bytes=cost.device_peak_bytes,
        end_s=float(end_s),
    )
    forward_s, upload_s, download_s, backward_s = clock.moments
    first = Step(forward_s, upload_s, download_s, backward_s, tuple(clock.server))
    return SplitTiming(timing, first, step_s, server_s, clock.stopped_after)


def _together(clock: _Clock) -> Process[tuple[Floats, Floats]]:
    """Take all steps between barriers; returns seconds of every step and of the server in it."""
    log, crossed, air = clock.log, clock.crossed, clock.air
    steps, count = crossed.up_bytes.shape
    last = crossed.last_step
    ready_s = yield from clock.fetched(np.where(last >= 0, 0.0, np.inf))
    done_s = np.full(count, np.inf)
    step_s, server_s = np.zeros(steps), np.zeros(steps)
    barrier_s = float(np.max(ready_s[np.isfinite(ready_s)], initial=0.0))
    for step in range(steps):
        start_s = np.where((crossed.up_bytes[step] > 0), ready_s, np.inf)
        if not np.any(np.isfinite(start_s)):
            break
        arrived_s = yield from clock.uploaded(air.up, step, start_s, _kept_busy(clock, step))
        came = np.isfinite(arrived_s)
        if not came.any() or (np.isfinite(log.until_s) and not came[np.isfinite(start_s)].all()):
            clock.gives_up(step, np.isfinite(start_s))
            break
        begun_s = float(arrived_s[came].max())
        served_s = clock.served(step, begun_s, came)
        learnt_s = yield from clock.learnt(
            air.unicast, step, np.where(came & clock.goes_on(step), served_s, np.inf)
        )
        stays = np.isfinite(learnt_s)
        clock.gives_up(step, came & clock.goes_on(step) & ~stays)
        end_s = float(np.max(learnt_s[stays], initial=served_s))
        stops = clock.stops(step, end_s, end_s - barrier_s) & stays
        done_s = np.where(stays & ((last == step) | stops), learnt_s, done_s)
        ready_s = np.where(stays & ~stops, end_s, np.inf)
        step_s[step], server_s[step] = end_s - barrier_s, served_s - begun_s
        clock.stepped_s = barrier_s = end_s
    clock.finish_s[:] = yield from clock.sent(air.up, done_s, air.tell)
    for step in range(1, steps):
        clock.gives_up(step, (last == step) & np.isfinite(done_s) & ~np.isfinite(clock.finish_s))
    return step_s, server_s


def _kept_busy(clock: _Clock, step: int) -> Tell:
    """Return how the method is told, where who has sent this step's tensor counts as one that will.

    A method asked in the middle of a step must not take the link from those that wait at the
    barrier, for its answer holds until the slot ends.
    """
    crossed = clock.crossed
    sends_more = (crossed.last_step > step) | (crossed.adapter_up_bytes > 0)
    later = np.where(sends_more & clock.goes_on(step), crossed.up_bytes[step], 0.0)

    return lambda remaining: clock.air.tell(np.where(remaining > 0, remaining, later))


def _in_turn(clock: _Clock) -> Process[tuple[Floats, Floats]]:
    """Serve one device after the other; returns mean seconds of every step and of the server."""
    crossed, alone = clock.crossed, clock.air.alone
    steps, count = crossed.up_bytes.shape
    step_s, server_s, served = np.zeros(steps), np.zeros(steps), np.zeros(steps)
    now_s = 0.0
    for index in crossed.order[crossed.last_step[crossed.order] >= 0]:
        mine = np.arange(count) == index
        here_s = yield from clock.fetched(np.where(mine, now_s, np.inf))
        for step in range(int(crossed.last_step[index]) + 1):
            arrived_s = yield from clock.uploaded(alone, step, here_s)
            if not np.isfinite(arrived_s[index]):
                clock.gives_up(step, mine)
                here_s = arrived_s
                break
            done_s = clock.served(step, float(arrived_s[index]), mine)
            goes_on = mine & clock.goes_on(step)
            learnt_s = yield from clock.learnt(
                clock.air.broadcast, step, np.where(goes_on, done_s, np.inf)
            )
            end_s = float(learnt_s[index]) if goes_on[index] else done_s
            if np.isfinite(end_s):
                step_s[step] += end_s - here_s[index]
                server_s[step] += done_s - arrived_s[index]
                served[step] += 1
                now_s = end_s
            is_last = np.isfinite(end_s) and clock.stops(step, end_s, end_s - here_s[index])[index]
            here_s = learnt_s
            if is_last:
                break
        back_s = (yield from clock.sent(alone, here_s))[index]
        if not np.isfinite(back_s) and clock.goes_on(crossed.last_step[index])[index]:
            clock.gives_up(crossed.last_step[index], mine)
        clock.finish_s[index] = back_s
        now_s = float(back_s) if np.isfinite(back_s) else now_s
        clock.stepped_s = now_s
    return step_s / np.maximum(served, 1), server_s / np.maximum(served, 1)
