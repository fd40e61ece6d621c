"""Measuring scores before the first pruning: who does, and what it takes on the virtual clock."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from airtune.cost import (
    direction_flops,
    energy_j,
    forward_flops,
    gram_bytes,
    gram_flops,
    gram_peak_bytes,
    peak_memory,
)
from airtune.cost.memory import pass_bytes
from airtune.engine.base import Setup
from airtune.engine.clock import transfer
from airtune.engine.splitting import rows_of
from airtune.engine.workers import Workers
from airtune.errors import InfeasibleError
from airtune.fleet.fleet import Fleet
from airtune.fleet.rates import downlink_bps, uplink_bps
from airtune.model.base import BaseModel
from airtune.model.importance import measure, pool
from airtune.model.state import GlobalState
from airtune.plan import Assignments, Floats, Ints, Problem, RoundPlan, WorkSpec, whole_model
from airtune.units import BITS_PER_BYTE, format_bytes
from airtune.work.importance import importance_bytes, measured_batches, report_bytes
from airtune.work.network import current_base, wants_means


def lacks_scores(workers: Workers, plan: RoundPlan, state: GlobalState) -> bool:
    """Return whether something has to be measured before what the plan prunes can be pruned."""
    problem, known = workers.problem, state.importance
    work = problem.work
    if not prunes(plan.assignments, problem):
        return False
    lacks_means = known is not None and known.means is None
    lacks_grams = work.mend == "least-squares" and state.grams is None
    return (
        lacks_grams
        or known is None
        or (work.cumulative and lacks_means and wants_means(workers.base, work))
    )


def measured(
    workers: Workers, fleet: Fleet, plan: RoundPlan, state: GlobalState, *, start_s: float
) -> tuple[GlobalState, Setup]:
    """Have devices that hold the dense model measure importance, and pool what they report.

    Where none does, the server scores by the size of weights, and nothing is mended.

    Args:
        workers: the devices.
        fleet: their memory, speeds and links.
        plan: who is there.
        state: of the server.
        start_s: virtual time at which they begin.

    Returns:
        The state with scores, and what it took on the virtual clock.
    """
    problem = workers.problem
    base = current_base(workers.base, state)
    needs_data = asks_data(base, problem.work)
    rows = scorers(problem, fleet, plan)
    if not (needs_data and rows.size):
        return server_scores(base, state, problem), Setup(
            faults=(NOBODY_SCORES,) if needs_data else ()
        )
    found, faults = workers.scores(plan.assignments.device[rows].tolist(), state)
    devices, reports = list(found), list(found.values())
    pooled = pool(reports, problem.devices.weight[devices].tolist())
    grams = None
    if problem.work.mend == "least-squares":
        able = holders_of_grams(problem, fleet, np.array(devices, np.int64))
        grams = workers.grams(able.tolist(), state)
    if state.importance is not None:
        pooled = replace(state.importance, means=pooled.means)
    setup = price_measuring(
        problem,
        fleet,
        rows_of(plan, rows),
        report_bytes=importance_bytes(reports[0]),
        start_s=start_s,
    )
    return replace(state, importance=pooled, grams=grams), replace(setup, faults=faults)


def most_measuring_bytes(workers: Workers, fleet: Fleet, plan: RoundPlan) -> Floats:
    """Return the most bytes that measuring takes of each row's device, shape (n,)."""
    shape = workers.problem.shape
    each = report_bytes(shape)
    if workers.problem.work.mend == "least-squares":
        each += 2.0 * gram_bytes(shape)
    found = np.zeros(len(plan.assignments))
    found[scorers(workers.problem, fleet, plan)] = each
    return found


def price_measuring(
    problem: Problem, fleet: Fleet, plan: RoundPlan, *, report_bytes: float, start_s: float
) -> Setup:
    """Price forward passes, and the report over the plan's share of the link.

    First-order scores take a backward pass with gradients of all weights as well; least squares,
    second moments, which are sent with the scores and come back pooled on the broadcast.

    Args:
        problem: with the local work.
        fleet: devices and links.
        plan: of the devices that measure.
        report_bytes: of scores and means.
        start_s: virtual time at which they begin.
    """
    device, slot_s, work = plan.assignments.device, fleet.slot_s, problem.work
    has_grams = work.mend == "least-squares"
    batches = measured_batches(work, problem.workload.batch)
    dense = whole_model(device, rank=1, local_steps=batches, share=plan.assignments.share)
    passes = 3 if work.importance == "first-order" else 1
    flops = passes * forward_flops(problem.shape, problem.workload, dense)
    flops = flops + (gram_flops(problem.shape, problem.workload) if has_grams else 0.0)
    once = direction_flops(problem.shape) if has_grams else 0.0
    compute_s = (batches * flops + once) / fleet.flops_at(plan.round)[device]
    shared_bytes = gram_bytes(problem.shape) if has_grams else 0.0

    def rates(slot: int, remaining: Floats) -> Floats:
        links = fleet.links_at(plan.round, slot, start_s + slot * (slot_s or 0.0))
        return uplink_bps(links, plan.assignments.share, device)

    sizes = np.full(len(device), report_bytes + shared_bytes)
    sent = transfer(rates, start_s=compute_s, size_bytes=sizes, slot_s=slot_s)
    finish_s = np.where(np.isfinite(sent.finish_s), sent.finish_s, compute_s)
    energy = energy_j(problem, device, compute_s=compute_s, upload_s=finish_s - compute_s)
    down_bps = downlink_bps(fleet.links_at(plan.round, 0, start_s), device)
    heard_s = shared_bytes * BITS_PER_BYTE / np.where(down_bps > 0.0, down_bps, np.inf)
    return Setup(
        duration_s=float(np.max(finish_s, initial=0.0) + np.max(heard_s, initial=0.0)),
        upload_bytes=float(sent.sent_bytes.sum()),
        download_bytes=shared_bytes * len(device),
        energy_j=float(energy.sum()),
        each_bytes=report_bytes + 2.0 * shared_bytes,
        devices=tuple(device.tolist()),
    )


def scorers(problem: Problem, fleet: Fleet, plan: RoundPlan) -> Ints:
    """Return the rows of a plan whose devices can score the dense model.

    They are not cut, hold data, and have the memory of the dense base and of one block's pass;
    first-order scores take the gradients of all weights as well.
    """
    assignments, shape, workload = plan.assignments, problem.shape, problem.workload
    dense = whole_model(assignments.device, rank=1, local_steps=1, share=assignments.share)
    needed = shape.parameters * workload.base_bits / 8.0 + pass_bytes(shape, workload, dense)
    if problem.work.importance == "first-order":
        needed = peak_memory(shape, workload, dense).total + shape.parameters * workload.dtype_bytes
    has_data = problem.devices.samples[assignments.device] > 0
    return np.flatnonzero(
        (assignments.cut == 0) & has_data & (fleet.memory_bytes[assignments.device] >= needed)
    )


NOBODY_SCORES = (
    "no device of the round holds the dense model, so the server scored heads and channels by the "
    "size of their weights, and nothing stands for what is removed"
)


def asks_data(base: BaseModel, work: WorkSpec) -> bool:
    """Return whether scores, or what stands for what is removed, are measured on data."""
    return work.importance not in ("magnitude", "random") or wants_means(base, work)


def server_scores(base: BaseModel, state: GlobalState, problem: Problem) -> GlobalState:
    """Return the state with scores that need no data: at random, or by the size of weights.

    Raises:
        InfeasibleError: if slices are mended by least squares, which need data.
    """
    if problem.work.mend == "least-squares":
        raise InfeasibleError(
            "least squares need second moments, but no device of the round holds the dense model; "
            "set train.mend to mean"
        )
    how: Literal["random", "magnitude"] = (
        "random" if problem.work.importance == "random" else "magnitude"
    )
    known = state.importance or measure(
        base.network, base.shape, [], criterion=how, seed=problem.seed
    )
    return replace(state, importance=known)


def holders_of_grams(problem: Problem, fleet: Fleet, device: Ints) -> Ints:
    """Return the devices whose memory holds the dense base and its second moments.

    Raises:
        InfeasibleError: if none does; the message names the largest.
    """
    needed = gram_peak_bytes(problem.shape, problem.workload)
    able = device[fleet.memory_bytes[device] >= needed]
    if not able.size:
        most = int(device[np.argmax(fleet.memory_bytes[device])])
        raise InfeasibleError(
            f"least squares need the second moments of the dense model, {format_bytes(needed)} with "
            f"the base, and {fleet.names[most]}, which has most memory of the devices asked, has "
            f"{format_bytes(float(fleet.memory_bytes[most]))}; set train.mend to mean"
        )
    return able


def prunes(assignments: Assignments, problem: Problem) -> bool:
    """Return whether a plan removes anything of the model on any device."""
    return bool(
        np.any(problem.shape.kept_groups(assignments.prune_heads) < problem.shape.kv_groups)
        or np.any(problem.shape.kept_channels(assignments.prune_ffn) < problem.shape.ffn)
    )
