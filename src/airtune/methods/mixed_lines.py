"""What each device may do where whole and cut devices share a round: its menu of lines, priced.

A *whole* line is a pruning level and a rank; a *cut* line is a cut and a codec of what crosses it.
Lines that were not measured are not offered, as nobody knows how many rounds they cost: without a
measurement no device prunes beyond what its memory forces, sends a lower rank or codes what crosses
its cut.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np

from airtune.cost import broadcast_bytes, line_cost, server_model_bytes
from airtune.errors import InfeasibleError
from airtune.fleet.rates import downlink_bps
from airtune.methods.budget import Budget, most_of
from airtune.methods.levels import fitting_levels, ladder_of
from airtune.methods.seen import Seen
from airtune.plan import (
    Assignments,
    Bools,
    CodecSpec,
    Floats,
    Ints,
    Measurements,
    Problem,
    whole_model,
)
from airtune.solve import Curves, MixedProblem
from airtune.units import BITS_PER_BYTE, format_bytes

Knob = Literal["prune", "rank", "cut", "codec", "share"]

_ASSUMED_MOST = 0.95
_ASSUMED_POINTS = 20


@dataclass(frozen=True, slots=True)
class MixedLines:
    """The lines of a menu in columns of shape (k,), the whole ones first.

    Costs of a whole line are of a round, those of a cut line of a step unless said otherwise; what a
    kind of line does not have is 0.
    """

    prune_heads: Floats
    prune_ffn: Floats
    pruned: Floats
    """Fraction of the blocks' linear parameters removed."""
    rank: Ints
    cut: Ints
    """Blocks on the device; 0 in a whole line."""
    codec: Ints
    """Index into `codecs`; 0 in a whole line."""
    log_rounds: Floats
    """ln of the rounds of a fleet that only has this line, without pruning's part."""
    flops: Floats
    """Whole: of a round. Cut: forward, a step."""
    up_bytes: Floats
    """Whole: the update. Cut: what goes up in a step."""
    backward_flops: Floats
    gradient_bytes: Floats
    server_flops: Floats
    adapter_up_bytes: Floats
    """A round, as is the next column."""
    adapter_down_bytes: Floats
    server_bytes: Floats
    peak_bytes: Floats
    """Of the device."""
    codecs: tuple[CodecSpec, ...]
    """Of what crosses a cut; the first is the identity."""

    def __len__(self) -> int:
        return int(self.cut.shape[0])

    @property
    def whole(self) -> Bools:
        """Which lines train the whole model."""
        return np.asarray(self.cut == 0)

    def take(self, index: Ints) -> MixedLines:
        """Return a menu of some of the lines."""
        columns = {each.name: getattr(self, each.name)[index] for each in fields(self)
                   if each.name != "codecs"}  # fmt: skip
        return replace(self, **columns)

    def told(self, problem: Problem, device: Ints, index: Ints, share: Floats) -> Assignments:
        """Return the assignments of n devices that take these lines, shape (n,)."""
        return Assignments(
            device=device, prune_heads=self.prune_heads[index], prune_ffn=self.prune_ffn[index],
            rank=self.rank[index], share=share,
            local_steps=np.full(device.shape, problem.workload.local_steps, np.int64),
            cut=self.cut[index], codec_index=self.codec[index], codecs=self.codecs,
        )  # fmt: skip

    def find(self, rows: Assignments) -> Ints:
        """Return the line that each row of a plan is told, -1 where the menu has none, shape (n,)."""
        codec = np.array([self.codecs.index(each) if each in self.codecs else -1
                          for each in rows.codecs], np.int64)[rows.codec_index]  # fmt: skip
        is_cut = rows.cut[:, None] > 0
        same = rows.cut[:, None] == self.cut
        same &= (rows.rank[:, None] == self.rank) & (rows.prune_heads[:, None] == self.prune_heads)
        same &= rows.prune_ffn[:, None] == self.prune_ffn
        same &= ~is_cut | (codec[:, None] == self.codec)
        return np.asarray(np.where(same.any(axis=1), np.argmax(same, axis=1), -1), np.int64)


def mixed_lines(problem: Problem, knobs: Collection[Knob], *, ranks: Sequence[int]) -> MixedLines:
    """Return the menu of a model.

    Args:
        problem: gives the model, the workload and what was measured.
        knobs: what may differ from dense, whole training at full rank without compression.
        ranks: of whole lines, if ranks were measured and may be chosen; () = halves of the full one.
    """
    measured, full = problem.measurements, problem.workload.rank
    chosen = [
        rank for rank in ranks or (full, full // 2, full // 4, full // 8) if 1 <= rank <= full
    ]
    if measured is None or "rank" not in knobs or not measured.ranks:
        chosen = [full]
    parts = [_whole(problem, rank, measured) for rank in sorted({*chosen, full}, reverse=True)]
    codecs = [CodecSpec()]
    if measured is not None and "codec" in knobs:
        codecs += [each for each in measured.codecs_measured if each not in codecs]
    if "cut" in knobs and problem.shape.blocks > 1:
        parts.append(_cut(problem, tuple(codecs), measured))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    found = MixedLines(codecs=tuple(codecs), **columns)
    return found if "prune" in knobs else found.take(np.flatnonzero(found.pruned == 0.0))


def fitting_lines(problem: Problem, seen: Seen, lines: MixedLines, max_prune: Budget) -> Bools:
    """Return which lines each device's memory holds, shape (n, k).

    Raises:
        InfeasibleError: if a device has no line; the message says by how much the lightest is too
            large.
    """
    allowed = lines.peak_bytes <= seen.memory_bytes[:, None]
    limit = most_of(problem, max_prune)
    measured = problem.measurements
    limit = 0.0 if measured is None or not measured.pruning else limit
    for rank in np.unique(lines.rank[lines.whole]).tolist():
        rows = np.flatnonzero(lines.whole & (lines.rank == rank))
        steps = ladder_of(_at_rank(problem, int(rank)))
        fits = fitting_levels(steps, seen.memory_bytes, limit, forced=max_prune == "auto")
        level = np.searchsorted(steps.pruned, lines.pruned[rows] - 1e-12)
        allowed[:, rows] &= fits[:, level]
    none = np.flatnonzero(~allowed.any(axis=1))
    if none.size:
        row, least = int(none[0]), int(np.argmin(lines.peak_bytes))
        raise InfeasibleError(
            f"device {seen.names[row]} has {format_bytes(seen.memory_bytes[row])} of memory, "
            f"{format_bytes(float(lines.peak_bytes[least] - seen.memory_bytes[row]))} less than the "
            f"lightest choice needs ({line_label(lines, least)}: "
            f"{format_bytes(float(lines.peak_bytes[least]))}); lower the batch, shorten the "
            "sequences, turn on gradient checkpointing or leave the device out"
        )
    return allowed


def line_label(lines: MixedLines, line: int) -> str:
    """Return a line in words."""
    if lines.cut[line]:
        return f"cut {lines.cut[line]}, {lines.codecs[int(lines.codec[line])].label}"
    return f"whole, {lines.pruned[line]:.0%} pruned, rank {lines.rank[line]}"


def mixed_problem(
    problem: Problem, seen: Seen, lines: MixedLines, allowed: Bools, *, largest_rank: int,
    curves: Curves, most_log_rounds: float = float("inf"),
    reserved_bytes: float = 0.0,
) -> MixedProblem:  # fmt: skip
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
        curves=curves, steps=problem.workload.local_steps, whole=whole,
        fixed_s=lines.flops / speed + np.where(whole, broadcast / down, 0.0),
        bits=ones * lines.up_bytes * BITS_PER_BYTE, backward_s=lines.backward_flops / speed,
        down_s=lines.gradient_bytes / down,
        server_s=ones * lines.server_flops / problem.server_flops_per_s,
        adapter_bits=ones * lines.adapter_up_bytes * BITS_PER_BYTE,
        fetch_s=lines.adapter_down_bytes / down, server_bytes=ones * lines.server_bytes,
        pruned=ones * lines.pruned, log_rounds=ones * lines.log_rounds,
        weight=weight / total if total > 0.0 else np.full(weight.shape, 1.0 / max(weight.size, 1)),
        allowed=allowed & (lines.rank <= largest_rank), prune_grid=grid, prune_log_rounds=values,
        server_memory_bytes=max(room - held, 1.0), most_log_rounds=most_log_rounds,
        names=seen.able_names,
    )  # fmt: skip


def _earliest_cut(
    problem: Problem, lines: MixedLines, allowed: Bools, room_bytes: float
) -> tuple[int, float]:
    """Return the earliest cut at which the server holds its model beside those who must be cut.

    Returns:
        The cut, one after the last where no cut may be had, and the bytes of the server's model.

    Raises:
        InfeasibleError: if a device must be cut and the server's memory holds no cut.
    """
    must = allowed[~(allowed & lines.whole).any(axis=1)]
    for cut in np.unique(lines.cut[allowed.any(axis=0) & ~lines.whole]).tolist():
        held = server_model_bytes(problem, int(cut), devices=allowed.shape[0])
        asked = np.where(must & (lines.cut >= cut), lines.server_bytes, np.inf).min(axis=1)
        if held + float(np.sum(asked)) <= room_bytes:
            return int(cut), held
    if len(must):
        raise InfeasibleError(
            f"the server has {format_bytes(problem.server_memory_bytes)} of memory, too little for "
            f"the {len(must)} devices that cannot hold the model and must leave blocks to it; give "
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


def _at_rank(problem: Problem, rank: int) -> Problem:
    return replace(problem, workload=replace(problem.workload, rank=rank))


def _whole(problem: Problem, rank: int, measured: Measurements | None) -> dict[str, Floats | Ints]:
    """Return the columns of the whole lines of a rank: every level of the ladder."""
    steps = ladder_of(_at_rank(problem, rank))
    count, nothing = len(steps), np.zeros(len(steps))
    lost = 0.0
    if measured is not None and rank < problem.workload.rank:
        lost = measured.rank_rounds(rank)
    columns: dict[str, Floats | Ints] = {
        each.name: nothing for each in fields(MixedLines) if each.name != "codecs"
    }
    return columns | {
        "prune_heads": steps.prune_heads, "prune_ffn": steps.prune_ffn, "pruned": steps.pruned,
        "rank": np.full(count, rank, np.int64), "cut": np.zeros(count, np.int64),
        "codec": np.zeros(count, np.int64), "log_rounds": np.full(count, lost),
        "flops": steps.flops, "up_bytes": steps.upload_bytes, "peak_bytes": steps.peak_bytes,
    }  # fmt: skip


def _cut(
    problem: Problem, codecs: tuple[CodecSpec, ...], measured: Measurements | None
) -> dict[str, Floats | Ints]:
    """Return the columns of the cut lines: every cut with every codec."""
    cuts = np.arange(1, problem.shape.blocks)
    cut, codec = (grid.ravel() for grid in np.meshgrid(cuts, range(len(codecs)), indexing="ij"))
    count, nothing = cut.size, np.zeros(cut.size)
    workload = problem.workload
    rows = replace(
        whole_model(np.arange(count), rank=workload.rank, local_steps=workload.local_steps,
                    share=np.ones(count)),
        cut=cut.astype(np.int64), codec_index=codec.astype(np.int64), codecs=codecs,
    )  # fmt: skip
    cost = line_cost(problem, rows, np.ones(count, np.int64))
    lost = nothing
    if measured is not None:
        lost = np.array([(measured.cut or 0.0) + measured.codec_rounds(int(at), codecs[each])
                         for at, each in zip(cut, codec, strict=True)])  # fmt: skip
    return {
        "prune_heads": nothing, "prune_ffn": nothing, "pruned": nothing, "rank": rows.rank,
        "cut": rows.cut, "codec": rows.codec_index, "log_rounds": lost,
        "flops": cost.forward_flops, "up_bytes": cost.up_bytes,
        "backward_flops": cost.backward_flops, "gradient_bytes": cost.gradient_bytes,
        "server_flops": cost.server_flops, "adapter_up_bytes": cost.adapter_up_bytes,
        "adapter_down_bytes": cost.adapter_down_bytes, "server_bytes": cost.server_bytes,
        "peak_bytes": cost.device_peak_bytes,
    }  # fmt: skip
