"""What a round costs in virtual time, before anybody trains: numpy only, 10,000 devices at once.

    download (broadcast) -> compute -> upload (the link is divided, anew at each slot edge)

Bytes, FLOPs and peak memory are the cost model's; transfers are integrated over the links' slots.
A device whose predicted peak exceeds its memory, or that holds no data, gives up at once. One that
drops out is missed when its update would have begun. Later than the deadline is late: such a
device stops there, and what it had spent by then is charged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airtune.cost import predict
from airtune.engine.air import Air, Part
from airtune.engine.checks import Divide
from airtune.engine.clock import Process, RatesAt, Transfer, alone, passing
from airtune.fleet.fleet import Fleet
from airtune.plan import Bools, Floats, Ints, LinkState, Problem, RoundColumns, RoundPlan
from airtune.units import format_bytes, format_seconds

Tell = Callable[[Floats], None]


@dataclass(frozen=True, slots=True)
class Timing(RoundColumns):
    """A round on the virtual clock; columns follow the devices of the plan, shape (n,)."""

    status: NDArray[np.str_]
    """Ok, late, failed or absent."""
    faults: tuple[str, ...]
    """Why a device's update does not come; empty where it does."""
    step_up_bytes: Floats
    """Of `upload_bytes`: what went over a cut."""
    step_down_bytes: Floats
    server_s: Floats
    """Of the server's computing, for each device's steps."""
    bandwidth_hz: Floats
    """Hertz of the uplink at the start; NaN on a link of measured capacity."""
    end_s: float
    """Seconds after which the round is over."""


def nobody(remaining: Floats) -> None:
    """Tell nobody: where devices take turns, no method divides the link."""


class RoundLog:
    """What m devices have spent of a round so far, (m,) each: their part of the event clock.

    Moments are seconds after the start of the round; who starts at inf takes no part. Nothing is
    sent after `until_s`, and no second behind it is charged.
    """

    def __init__(self, air: Part, until_s: float) -> None:
        """Begin with nothing spent."""
        self.air, self.until_s = air, until_s
        (
            self.download_s,
            self.compute_s,
            self.upload_s,
            self.download_bytes,
            self.upload_bytes,
            self.step_up_bytes,
            self.step_down_bytes,
            self.server_s,
            self.flops,
        ) = np.zeros((9, len(air.device)))

    def receive(
        self, rates: RatesAt, start_s: Floats, size_bytes: Floats, *, is_step: bool = False
    ) -> Process[Floats]:
        """Let downloads pass; returns when each is there, inf = not at all."""
        done = yield from self._carried(rates, start_s, size_bytes, nobody)
        self.download_s += self._spent(start_s, done.finish_s)
        self.download_bytes += done.sent_bytes
        self.step_down_bytes += done.sent_bytes * is_step
        return done.finish_s

    def send(
        self,
        rates: RatesAt,
        start_s: Floats,
        size_bytes: Floats,
        *,
        tell: Tell = nobody,
        is_step: bool = False,
    ) -> Process[Floats]:
        """Let uploads pass, likewise; `tell` is told what remains at each slot edge."""
        done = yield from self._carried(rates, start_s, size_bytes, tell)
        self.upload_s += self._spent(start_s, done.finish_s)
        self.upload_bytes += done.sent_bytes
        self.step_up_bytes += done.sent_bytes * is_step
        return done.finish_s

    def compute(self, start_s: Floats, seconds: Floats, flops: Floats) -> Floats:
        """Let devices compute; returns when each is done, inf where it never began."""
        end_s = start_s + seconds
        self.compute_s += self._spent(start_s, end_s)
        self.flops += np.where(start_s < self.until_s, flops, 0.0)
        return end_s

    def timing(
        self,
        plan: RoundPlan,
        status: NDArray[np.str_],
        faults: Sequence[str],
        *,
        finish_s: Floats,
        peak_bytes: Floats,
        end_s: float,
    ) -> Timing:
        """Return the round of these devices.

        Args:
            plan: of these devices alone.
            status: from `settled`, with its reasons.
            faults: likewise.
            finish_s: when each update was back, (m,).
            peak_bytes: of the devices, (m,).
            end_s: when the round is over.
        """
        spent = {name: value for name, value in vars(self).items() if name in _COLUMNS}
        return Timing(
            **spent,
            status=status,
            faults=tuple(faults),
            peak_bytes=peak_bytes,
            finish_s=np.where((status == "ok") & np.isfinite(finish_s), finish_s, np.nan),
            bandwidth_hz=bandwidth_hz(self.air.links(0), plan),
            end_s=end_s,
        )

    def _carried(
        self, rates: RatesAt, start_s: Floats, size_bytes: Floats, tell: Tell
    ) -> Process[Transfer]:
        return passing(
            rates,
            start_s=start_s,
            size_bytes=np.where(np.isfinite(start_s), size_bytes, 0.0),
            slot_s=self.air.slot_s,
            until_s=self.until_s,
            tell=tell,
        )

    def _spent(self, start_s: Floats, end_s: Floats) -> Floats:
        """Return seconds from one moment to another, as far as they are before the deadline."""
        begun = np.isfinite(start_s)
        start = np.where(begun, start_s, 0.0)
        end = np.minimum(np.where(begun, end_s, 0.0), self.until_s)
        return np.where(np.isfinite(end), np.maximum(end - start, 0.0), 0.0)


_COLUMNS = tuple(each.name for each in fields(Timing) if each.name not in ("faults", "end_s"))


def settled(
    faults: Sequence[str],
    finish_s: Floats,
    until_s: float,
    *,
    absent: Mapping[int, str],
    needed_s: Floats | None = None,
) -> tuple[NDArray[np.str_], list[str]]:
    """Return what became of each device, and why its update does not come; "" where it does.

    Args:
        faults: why a device did not even begin; empty where it did.
        finish_s: when each update was back; inf = it never was, (m,).
        until_s: the deadline; inf = none.
        absent: the rows of those that vanished, with what is said of them.
        needed_s: what each would have needed, where that is told, (m,).
    """
    status = np.full(len(faults), "ok", "<U7")
    has_deadline = bool(np.isfinite(until_s))
    # without a deadline nothing is late, but a link without any rate never delivers
    status[~np.isfinite(finish_s) | (finish_s > until_s)] = "late" if has_deadline else "failed"
    status[list(absent)] = "absent"
    status[[bool(fault) for fault in faults]] = "failed"
    late = f"not back by the deadline of {until_s:.4g} s"
    if not has_deadline:
        late = "its link carried nothing in this round"
    reasons = []
    for row, fault in enumerate(faults):
        said = fault or absent.get(row) or ("" if status[row] == "ok" else late)
        if status[row] == "late" and needed_s is not None and np.isfinite(needed_s[row]):
            said += f"; it needs about {format_seconds(float(needed_s[row]))}"
        reasons.append(said)
    return status, reasons


def time_round(
    problem: Problem,
    fleet: Fleet,
    plan: RoundPlan,
    divide: Divide,
    *,
    start_s: float,
    dropped: Bools,
    upload_bytes: Floats | None = None,
    download_bytes: float | None = None,
) -> Timing:
    """Let a round pass on the virtual clock.

    Args:
        problem: unmasked: with speeds, memory and powers.
        fleet: devices and links.
        plan: the method's decision.
        divide: called at each slot edge after the first, for the shares of the coming slot.
        start_s: virtual time at which the round begins.
        dropped: devices that will vanish before they answer, shape (n,).
        upload_bytes: of updates that have been coded, shape (n,); None = the cost model's.
        download_bytes: of a broadcast that has been coded; None = the cost model's.

    Raises:
        MethodError: if shares, of the plan or of `divide`, give out more than a link has.
    """
    air = Air(fleet, plan, divide, start_s=start_s)
    part = air.part(np.arange(len(plan.assignments)))
    return alone(
        whole_round(
            problem,
            fleet,
            plan,
            part,
            dropped=dropped,
            upload_bytes=upload_bytes,
            download_bytes=download_bytes,
        )
    )


def whole_round(
    problem: Problem,
    fleet: Fleet,
    plan: RoundPlan,
    air: Part,
    *,
    dropped: Bools,
    upload_bytes: Floats | None = None,
    download_bytes: float | None = None,
) -> Process[Timing]:
    """Let a round pass for devices that train the whole model; `air` is theirs.

    Args:
        problem: unmasked.
        fleet: devices and links.
        plan: of these devices alone.
        air: the links as they have them.
        dropped: as for `time_round`.
        upload_bytes: as for `time_round`.
        download_bytes: as for `time_round`.
    """
    cost = predict(
        problem, plan.assignments, links=air.links(0), flops_per_s=fleet.flops_at(plan.round)
    )
    faults = refusals(problem, fleet, plan, cost.peak_bytes)
    sent = cost.upload_bytes if upload_bytes is None else upload_bytes
    received = cost.download_bytes if download_bytes is None else download_bytes
    able = np.array([not fault for fault in faults], np.bool_)
    log = RoundLog(air, plan.until_s(problem))
    start_s = np.where(able, 0.0, np.inf)
    here_s = yield from log.receive(air.broadcast, start_s, np.broadcast_to(received, able.shape))
    flops = np.where(able, cost.flops, 0.0)
    computed_s = log.compute(here_s, cost.compute_s, np.zeros_like(flops))
    log.flops += flops  # in full, wherever the deadline finds a device
    finish_s = yield from log.send(air.up, computed_s, np.where(dropped, 0.0, sent), tell=air.tell)
    status, reasons = settled(
        faults,
        finish_s,
        log.until_s,
        needed_s=cost.finish_s,
        absent=dict.fromkeys(np.flatnonzero(dropped).tolist(), "dropped out before it answered"),
    )
    # one that dropped out is missed when its update would have begun
    missed_s = np.where(np.isin(status, ("ok", "absent")), finish_s, 0.0)
    end_s = float(np.max(missed_s[np.isfinite(missed_s)], initial=0.0))
    if np.isfinite(log.until_s) and np.any(np.isin(status, ("late", "absent"))):
        end_s = log.until_s
    return log.timing(
        plan, status, reasons, finish_s=finish_s, peak_bytes=cost.peak_bytes, end_s=end_s
    )


def joined(count: int, parts: Sequence[tuple[Ints, Timing]]) -> Timing:
    """Return one timing of n devices from those of disjoint parts that cover them.

    Args:
        count: n.
        parts: rows of the plan and their timing.
    """
    columns = {
        name: _scattered(count, [(places, getattr(timing, name)) for places, timing in parts])
        for name in _COLUMNS
    }
    faults = [""] * count
    for places, timing in parts:
        for index, fault in zip(places.tolist(), timing.faults, strict=True):
            faults[index] = fault
    end_s = max(timing.end_s for _, timing in parts)
    return Timing(faults=tuple(faults), end_s=end_s, **columns)


def _scattered(count: int, parts: Sequence[tuple[Ints, NDArray[Any]]]) -> NDArray[Any]:
    whole = np.zeros(count, parts[0][1].dtype)
    for places, values in parts:
        whole[places] = values
    return whole


def bandwidth_hz(links: LinkState, plan: RoundPlan) -> Floats:
    """Return the hertz of each device's uplink; NaN on a link of measured capacity."""
    device = plan.assignments.device
    hertz = plan.assignments.share * links.bandwidth_hz("up", device)
    return np.where(np.isfinite(links.up_signal_hz[device]), hertz, np.nan)


def refusals(problem: Problem, fleet: Fleet, plan: RoundPlan, peak_bytes: Floats) -> list[str]:
    """Return why a device of the plan does not even begin; empty where it does."""
    device = plan.assignments.device
    faults = [""] * len(device)
    for index in np.flatnonzero(peak_bytes > fleet.memory_bytes[device]):
        faults[index] = (
            f"out of memory: needs {format_bytes(peak_bytes[index])}, "
            f"has {format_bytes(fleet.memory_bytes[device[index]])}"
        )
    for index in np.flatnonzero(problem.devices.samples[device] == 0):
        faults[index] = "holds no training data"
    return faults
