"""What a round costs in virtual time, before anybody trains: numpy only, 10,000 devices at once.

    download (broadcast) -> compute -> upload (the link is divided, anew at each slot edge)

Bytes, FLOPs and peak memory are the cost model's; transfers are integrated over the links' slots.
A device whose predicted peak exceeds its memory, or that holds no data, gives up at once. One that
drops out is missed when its update would have begun. Later than the deadline is late: such a
device stops there, and what it had spent by then is charged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airtune.cost import predict
from airtune.engine.air import Air, Part
from airtune.engine.checks import Divide
from airtune.engine.clock import Process, Transfer, alone, passing
from airtune.fleet.fleet import Fleet
from airtune.plan import Bools, Floats, Ints, LinkState, Problem, RoundPlan
from airtune.units import format_bytes, format_seconds


@dataclass(frozen=True, slots=True)
class Timing:
    """A round on the virtual clock; columns follow the devices of the plan, shape (n,)."""

    status: NDArray[np.str_]
    """Ok, late, failed or absent."""
    faults: tuple[str, ...]
    """Why a device's update does not come; empty where it does."""
    download_s: Floats
    compute_s: Floats
    upload_s: Floats
    finish_s: Floats
    """Seconds after the start of the round; NaN where nothing came back."""
    download_bytes: Floats
    upload_bytes: Floats
    step_up_bytes: Floats
    """Of `upload_bytes`: what went over a cut."""
    step_down_bytes: Floats
    server_s: Floats
    """Of the server's computing, for each device's steps."""
    flops: Floats
    peak_bytes: Floats
    bandwidth_hz: Floats
    """Hertz of the uplink at the start; NaN on a link of measured capacity."""
    end_s: float
    """Seconds after which the round is over."""


_COLUMNS = ("status", "download_s", "compute_s", "upload_s", "finish_s", "download_bytes",
            "upload_bytes", "step_up_bytes", "step_down_bytes", "server_s", "flops", "peak_bytes",
            "bandwidth_hz")  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Phases:
    """When each device did what, if nothing but the deadline stops it."""

    download: Transfer
    computed_s: Floats
    """Seconds after the start at which the device has computed; inf where it never does."""
    upload: Transfer


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
            problem, fleet, plan, part, dropped=dropped, upload_bytes=upload_bytes,
            download_bytes=download_bytes,
        )
    )  # fmt: skip


def whole_round(
    problem: Problem, fleet: Fleet, plan: RoundPlan, air: Part, *, dropped: Bools,
    upload_bytes: Floats | None = None, download_bytes: float | None = None,
) -> Process[Timing]:  # fmt: skip
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
    links = air.links(0)
    cost = predict(problem, plan.assignments, links=links, flops_per_s=fleet.flops_at(plan.round))
    faults = refusals(problem, fleet, plan, cost.peak_bytes)
    sent = cost.upload_bytes if upload_bytes is None else upload_bytes
    received = cost.download_bytes if download_bytes is None else download_bytes
    able = np.array([not fault for fault in faults], np.bool_)
    deadline_s = plan.deadline_s if plan.deadline_s is not None else problem.deadline_s
    until_s = np.inf if deadline_s is None else deadline_s
    phases = yield from _phases(
        air,
        until_s=until_s,
        compute_s=np.where(able, cost.compute_s, 0.0),
        sizes=(np.where(able, received, 0.0), np.where(able & ~dropped, sent, 0.0)),
    )
    status, reasons = _statuses(
        phases, faults, able=able, dropped=dropped, deadline_s=deadline_s, needed_s=cost.finish_s
    )
    download_s, compute_s, upload_s = _spent(phases, until_s)
    step_up, step_down, server_s = np.zeros((3, len(able)))
    return Timing(
        status=status, faults=reasons,
        download_s=download_s, compute_s=compute_s, upload_s=upload_s,
        finish_s=np.where(status == "ok", phases.upload.finish_s, np.nan),
        download_bytes=phases.download.sent_bytes, upload_bytes=phases.upload.sent_bytes,
        step_up_bytes=step_up, step_down_bytes=step_down, server_s=server_s,
        flops=np.where(able, cost.flops, 0.0), peak_bytes=cost.peak_bytes,
        bandwidth_hz=bandwidth_hz(links, plan),
        end_s=_end(phases, status, able=able, dropped=dropped, deadline_s=deadline_s),
    )  # fmt: skip


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
        for place, fault in zip(places.tolist(), timing.faults, strict=True):
            faults[place] = fault
    end_s = max(timing.end_s for _, timing in parts)
    return Timing(faults=tuple(faults), end_s=end_s, **columns)


def _scattered(count: int, parts: Sequence[tuple[Ints, NDArray[Any]]]) -> NDArray[Any]:
    whole = np.zeros(count, parts[0][1].dtype)
    for places, values in parts:
        whole[places] = values
    return whole


def _spent(phases: _Phases, until_s: float) -> tuple[Floats, Floats, Floats]:
    """Return seconds of download, computing and upload until the deadline; NaN = without end."""
    ends = (phases.download.finish_s, phases.computed_s, phases.upload.finish_s)
    known = [np.where(np.isfinite(end), end, np.nan) for end in ends]
    if np.isfinite(until_s):
        known = [np.minimum(end, until_s) for end in ends]
    return known[0], known[1] - known[0], known[2] - known[1]


def bandwidth_hz(links: LinkState, plan: RoundPlan) -> Floats:
    """Return the hertz of each device's uplink; NaN on a link of measured capacity."""
    device = plan.assignments.device
    band = np.array([spec.up_bandwidth_hz for spec in links.specs])[links.link[device]]
    is_radio = np.isfinite(links.up_signal_hz[device])
    return np.where(is_radio, plan.assignments.share * band, np.nan)


def refusals(problem: Problem, fleet: Fleet, plan: RoundPlan, peak_bytes: Floats) -> list[str]:
    """Return why a device of the plan does not even begin; empty where it does."""
    device = plan.assignments.device
    faults = [""] * len(device)
    for place in np.flatnonzero(peak_bytes > fleet.memory_bytes[device]):
        faults[place] = (
            f"out of memory: needs {format_bytes(peak_bytes[place])}, "
            f"has {format_bytes(fleet.memory_bytes[device[place]])}"
        )
    for place in np.flatnonzero(problem.devices.samples[device] == 0):
        faults[place] = "holds no training data"
    return faults


def _phases(
    air: Part, *, until_s: float, sizes: tuple[Floats, Floats], compute_s: Floats
) -> Process[_Phases]:
    """Let downloads, computing and uploads pass."""
    slot_s, nothing = air.slot_s, np.zeros(len(compute_s))
    download = yield from passing(
        air.broadcast, start_s=nothing, size_bytes=sizes[0], slot_s=slot_s, until_s=until_s
    )
    computed_s = download.finish_s + compute_s
    upload = yield from passing(
        air.up, start_s=computed_s, size_bytes=sizes[1], slot_s=slot_s, until_s=until_s,
        tell=air.tell,
    )  # fmt: skip
    return _Phases(download, computed_s, upload)


def _statuses(
    phases: _Phases,
    faults: list[str],
    *,
    able: Bools,
    dropped: Bools,
    deadline_s: float | None,
    needed_s: Floats,
) -> tuple[NDArray[np.str_], tuple[str, ...]]:
    finish = phases.upload.finish_s
    status = np.full(len(faults), "ok", "<U7")
    late = finish > (np.inf if deadline_s is None else deadline_s)
    status[late] = "late"
    # without a deadline nothing is late, but a link without any rate never delivers
    stuck = ~np.isfinite(finish) & (deadline_s is None)
    status[stuck] = "failed"
    status[dropped] = "absent"
    status[~able] = "failed"
    texts = {
        "late": f"not back by the deadline of {deadline_s or 0.0:.4g} s",
        "absent": "dropped out before it answered",
        "failed": "its link carried nothing in this round",
        "ok": "",
    }
    reasons = [fault or texts[str(kind)] for fault, kind in zip(faults, status, strict=True)]
    for row in np.flatnonzero((status == "late") & np.isfinite(needed_s)):
        reasons[row] += f"; it needs about {format_seconds(float(needed_s[row]))}"
    return status, tuple(reasons)


def _end(
    phases: _Phases, status: NDArray[np.str_], *, able: Bools, dropped: Bools,
    deadline_s: float | None,
) -> float:  # fmt: skip
    """Return how long the server waits."""
    if deadline_s is not None and np.any(np.isin(status, ("late", "absent"))):
        return deadline_s
    came = phases.upload.finish_s[status == "ok"]
    missed = phases.computed_s[able & dropped]
    return float(np.max(np.concatenate([came, missed[np.isfinite(missed)]]), initial=0.0))
