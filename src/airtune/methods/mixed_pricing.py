"""The problem of one round: the menu's lines at the speeds, links and memory of its devices."""

from __future__ import annotations

import numpy as np

from airtune.cost import broadcast_bytes, server_model_bytes
from airtune.errors import InfeasibleError
from airtune.fleet.rates import downlink_bps
from airtune.methods.mixed_lines import MixedLines
from airtune.methods.seen import Seen
from airtune.plan import Bools, Floats, Measurements, Problem, whole_model
from airtune.solve import Curves, MixedProblem
from airtune.units import BITS_PER_BYTE, format_bytes

_ASSUMED_MOST = 0.95
_ASSUMED_POINTS = 20


def mixed_problem(
    problem: Problem,
    seen: Seen,
    lines: MixedLines,
    allowed: Bools,
    *,
    largest_rank: int,
    curves: Curves,
    most_log_rounds: float = float("inf"),
    reserved_bytes: float = 0.0,
) -> MixedProblem:
    """Return the problem of the able devices, whose broadcast is at this rank.

    Args:
        problem: what stands before the first round.
        seen: this round's devices.
        lines: the menu, k lines.
        allowed: of the able devices, shape (n, k).
        largest_rank: lines of higher rank are left out.
        curves: uplinks of the able devices.
        most_log_rounds: most ln K of a choice.
        reserved_bytes: of the server, for devices that are not able.
    """
    speed = seen.of(seen.flops_per_s)[:, None]
    down = downlink_bps(seen.links, seen.device[seen.able])[:, None] / BITS_PER_BYTE
    whole, ones = lines.whole, np.ones((seen.able.size, 1))
    row = whole_model(np.zeros(1, np.int64), rank=largest_rank, local_steps=1, share=np.ones(1))
    broadcast = broadcast_bytes(problem.shape, problem.workload, row)
    weight = seen.of(seen.weight)
    total = float(np.sum(weight))
    may = allowed & (lines.rank <= largest_rank)
    room = problem.server_memory_bytes - reserved_bytes
    first, held = _earliest_cut(problem, lines, may, room)
    may &= whole | (lines.cut >= first)
    grid, values = pruning_curve(problem.measurements, float(np.max(lines.pruned)))
    return MixedProblem(
        curves=curves,
        steps=problem.workload.local_steps,
        whole=whole,
        fixed_s=lines.flops / speed + np.where(whole, broadcast / down, 0.0),
        bits=ones * lines.up_bytes * BITS_PER_BYTE,
        backward_s=lines.backward_flops / speed,
        down_s=lines.gradient_bytes / down,
        server_s=ones * lines.server_flops / problem.server_flops_per_s,
        adapter_bits=ones * lines.adapter_up_bytes * BITS_PER_BYTE,
        fetch_s=lines.adapter_down_bytes / down,
        server_bytes=ones * lines.server_bytes,
        pruned=ones * lines.pruned,
        log_rounds=ones * lines.log_rounds,
        weight=weight / total if total > 0.0 else np.full(weight.shape, 1.0 / max(weight.size, 1)),
        allowed=may,
        prune_grid=grid,
        prune_log_rounds=values,
        server_memory_bytes=max(room - held, 1.0),
        most_log_rounds=most_log_rounds,
        names=seen.able_names,
    )


def _earliest_cut(
    problem: Problem, lines: MixedLines, allowed: Bools, room_bytes: float
) -> tuple[int, float]:
    """Return the earliest cut at which the server holds its model beside those who must be cut.

    Returns:
        The cut, one after the last where no cut may be had, and the bytes of the server's model.

    Raises:
        InfeasibleError: if a device must be cut and the server's memory holds no cut.
    """
    must, least = allowed[~(allowed & lines.whole).any(axis=1)], np.inf
    for cut in np.unique(lines.cut[allowed.any(axis=0) & ~lines.whole]).tolist():
        held = server_model_bytes(problem, int(cut), devices=allowed.shape[0])
        asked = np.where(must & (lines.cut >= cut), lines.server_bytes, np.inf).min(axis=1)
        needed = held + float(np.sum(asked))
        if needed <= room_bytes:
            return int(cut), held
        least = min(least, needed)
    if len(must):
        raise InfeasibleError(
            f"the server has {format_bytes(problem.server_memory_bytes)} of memory, too little for "
            f"the {len(must)} devices that cannot hold the model and must leave blocks to it: that "
            f"takes {format_bytes(least + problem.server_memory_bytes - room_bytes)} at least; give "
            "it more memory, lower the batch or leave them out"
        )
    return problem.shape.blocks, 0.0


def pruning_curve(measured: Measurements | None, most: float) -> tuple[Floats, Floats]:
    """Return mean pruning rates up to `most` and ln K there.

    Beyond what was measured the last slope goes on. Where nothing was measured a model of half the
    weights is taken to need twice the rounds.
    """
    if measured is None or not measured.pruning:
        grid = np.linspace(0.0, _ASSUMED_MOST, _ASSUMED_POINTS)
        return grid, -np.log1p(-grid)
    grid = np.array([row.pruned for row in measured.pruning])
    values = np.array([row.log_rounds for row in measured.pruning])
    if grid[-1] >= most:
        return grid, values
    slope = (values[-1] - values[-2]) / (grid[-1] - grid[-2]) if grid.size > 1 else 0.0
    return np.append(grid, most), np.append(values, values[-1] + slope * (most - grid[-1]))
