"""What each device may do where whole and cut devices share a round: its menu of lines, priced.

A *whole* line is a pruning level, a rank and a codec of the update; a *cut* line is a cut, a
codec of what crosses it and a rank of the device's own blocks.
Lines that were not measured are not offered, as nobody knows how many rounds they cost: without a
measurement no device prunes beyond what its memory forces, sends a lower rank or codes what crosses
its cut.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np

from airtune.cost import line_cost
from airtune.errors import InfeasibleError
from airtune.methods.budget import Budget, most_of
from airtune.methods.levels import fitting_levels, ladder_of
from airtune.methods.seen import Seen
from airtune.plan import Assignments, Bools, CodecSpec, Floats, Ints, Problem, whole_model
from airtune.units import format_bytes

Knob = Literal["prune", "rank", "upload", "cut", "codec", "share", "steps"]


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
    local_steps: Ints
    cut: Ints
    """Blocks on the device; 0 in a whole line."""
    codec: Ints
    """Index into `codecs`; 0 in a whole line."""
    upload: Ints
    """Index into `uploads`; 0 in a cut line."""
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
    uploads: tuple[CodecSpec, ...]
    """Of updates; the first is the recipe's."""

    def __len__(self) -> int:
        return int(self.cut.shape[0])

    @property
    def whole(self) -> Bools:
        """Which lines train the whole model."""
        return np.asarray(self.cut == 0)

    def take(self, index: Ints) -> MixedLines:
        """Return a menu of some of the lines."""
        return replace(self, **{name: getattr(self, name)[index] for name in _COLUMNS})

    def kinds(self) -> Iterator[Ints]:
        """Yield the whole lines of each rank, codec of updates and steps, from least to most pruned."""
        whole = np.flatnonzero(self.whole)
        kind = np.stack([self.rank, self.upload, self.local_steps])[:, whole]
        _, of = np.unique(kind, axis=1, return_inverse=True)
        for each in range(int(of.max(initial=-1)) + 1):
            yield whole[of == each]

    def assignments(
        self, problem: Problem, device: Ints, index: Ints, share: Floats
    ) -> Assignments:
        """Return the assignments of n devices that take these lines, shape (n,)."""
        return Assignments(
            device=device,
            prune_heads=self.prune_heads[index],
            prune_ffn=self.prune_ffn[index],
            rank=self.rank[index],
            share=share,
            local_steps=self.local_steps[index],
            cut=self.cut[index],
            codec_index=self.codec[index],
            codecs=self.codecs,
            upload_index=self.upload[index] if len(self.uploads) > 1 else None,
            uploads=self.uploads if len(self.uploads) > 1 else (),
        )

    def find(self, rows: Assignments) -> Ints:
        """Return the line that each row of a plan is told, -1 where the menu has none, shape (n,)."""
        codec = np.array(
            [self.codecs.index(each) if each in self.codecs else -1 for each in rows.codecs],
            np.int64,
        )[rows.codec_index]
        upload = np.full(len(rows), -1, np.int64)
        for spec, those in rows.upload_groups(self.uploads[0]):
            upload[those] = self.uploads.index(spec) if spec in self.uploads else -1
        is_cut = rows.cut[:, None] > 0
        same = rows.cut[:, None] == self.cut
        same &= (rows.rank[:, None] == self.rank) & (rows.prune_heads[:, None] == self.prune_heads)
        same &= rows.prune_ffn[:, None] == self.prune_ffn
        same &= rows.local_steps[:, None] == self.local_steps
        same &= ~is_cut | (codec[:, None] == self.codec)
        same &= upload[:, None] == self.upload
        return np.asarray(np.where(same.any(axis=1), np.argmax(same, axis=1), -1), np.int64)


_COLUMNS = tuple(each.name for each in fields(MixedLines) if each.name not in ("codecs", "uploads"))


def mixed_lines(problem: Problem, knobs: Collection[Knob], *, ranks: Sequence[int]) -> MixedLines:
    """Return the menu of a model.

    Args:
        problem: gives the model, the workload and what was measured.
        knobs: what may differ from dense, whole training at full rank without compression.
        ranks: to choose from, if ranks were measured and may be chosen; () = halves of the full one.
    """
    measured, full = problem.measurements, problem.workload.rank
    chosen = [
        rank for rank in ranks or (full, full // 2, full // 4, full // 8) if 1 <= rank <= full
    ]
    if measured is None or "rank" not in knobs or not measured.ranks:
        chosen = [full]
    uploads = [problem.workload.upload]
    if measured is not None and "upload" in knobs and measured.uploads:
        uploads += [row.codec for row in measured.uploads if row.codec not in uploads]
    usual = problem.workload.local_steps
    steps = [usual]
    if measured is not None and "steps" in knobs:
        steps += [row.local_steps for row in measured.steps if row.local_steps != usual]
    parts = [
        _whole(problem, rank, tuple(uploads), upload, local_steps)
        for local_steps in steps
        for rank in sorted({*chosen, full}, reverse=True)
        for upload in range(len(uploads))
    ]
    codecs = [CodecSpec()]
    if measured is not None and "codec" in knobs:
        codecs += [each for each in measured.codecs_measured if each not in codecs]
    if "cut" in knobs and problem.shape.blocks > 1:
        parts.append(_cut(problem, tuple(codecs), sorted({*chosen, full}, reverse=True)))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    found = MixedLines(codecs=tuple(codecs), uploads=tuple(uploads), **columns)
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
        steps = ladder_of(_told_by(problem, int(rank)))
        fits = fitting_levels(steps, seen.memory_bytes, limit, forced=max_prune == "auto")
        level = np.searchsorted(steps.pruned, lines.pruned[rows] - 1e-12)
        allowed[:, rows] &= fits[:, level]
    none = np.asarray(~allowed.any(axis=1), np.bool_)
    if none.any():
        row, others = seen.short_of_memory(none)
        least = int(np.argmin(lines.peak_bytes))
        raise InfeasibleError(
            f"device {seen.names[row]} has {format_bytes(seen.memory_bytes[row])} of memory, "
            f"{format_bytes(float(lines.peak_bytes[least] - seen.memory_bytes[row]))} less than the "
            f"lightest choice needs ({line_label(lines, least)}: "
            f"{format_bytes(float(lines.peak_bytes[least]))}){others}; lower the batch, shorten the "
            "sequences, turn on gradient checkpointing or leave the device out"
        )
    return allowed


def line_label(lines: MixedLines, line: int) -> str:
    """Return a line in words."""
    if lines.cut[line]:
        low = f", rank {lines.rank[line]}" if lines.rank[line] < lines.rank.max() else ""
        return f"cut {lines.cut[line]}{low}, {lines.codecs[int(lines.codec[line])].label}"
    pruned = f"{lines.pruned[line]:.0%} pruned" if lines.pruned[line] else "whole"
    sent = ""
    if len(lines.uploads) > 1:
        sent = f", sent by {lines.uploads[int(lines.upload[line])].label}"
    steps = ""
    if np.unique(lines.local_steps).size > 1:
        steps = f", {lines.local_steps[line]} steps"
    return f"{pruned}, rank {lines.rank[line]}{steps}{sent}"


def _told_by(problem: Problem, rank: int, upload: CodecSpec | None = None) -> Problem:
    """Return the problem of a fleet whose devices all have this rank and codec of updates."""
    workload = problem.workload
    if upload is not None and upload != workload.upload:
        scale = replace(workload.coded_scale, up=workload.upload_scale(upload))
        workload = replace(workload, upload=upload, coded_scale=scale)
    return replace(problem, workload=replace(workload, rank=rank))


def _whole(
    problem: Problem, rank: int, uploads: tuple[CodecSpec, ...], upload: int, local_steps: int
) -> dict[str, Floats | Ints]:
    """Return the columns of the whole lines of a rank, a codec and a number of steps: every level."""
    told = _told_by(problem, rank, uploads[upload])
    steps = ladder_of(replace(told, workload=replace(told.workload, local_steps=local_steps)))
    count, nothing = len(steps), np.zeros(len(steps))
    measured, lost = problem.measurements, 0.0
    if measured is not None and rank < problem.workload.rank:
        lost = measured.rank_rounds(rank)
    if measured is not None and upload:
        lost += measured.upload_rounds(uploads[upload]) - measured.upload_rounds(uploads[0])
    if measured is not None and local_steps != problem.workload.local_steps:
        lost += measured.steps_rounds(local_steps)
    columns: dict[str, Floats | Ints] = dict.fromkeys(_COLUMNS, nothing)
    return columns | {
        "prune_heads": steps.prune_heads,
        "prune_ffn": steps.prune_ffn,
        "pruned": steps.pruned,
        "rank": np.full(count, rank, np.int64),
        "local_steps": np.full(count, local_steps, np.int64),
        "cut": np.zeros(count, np.int64),
        "codec": np.zeros(count, np.int64),
        "upload": np.full(count, upload, np.int64),
        "log_rounds": np.full(count, lost),
        "flops": steps.flops,
        "up_bytes": steps.upload_bytes,
        "peak_bytes": steps.peak_bytes,
    }


def _cut(
    problem: Problem, codecs: tuple[CodecSpec, ...], ranks: Sequence[int]
) -> dict[str, Floats | Ints]:
    """Return the columns of the cut lines: every cut with every codec and rank.

    A lower rank is charged what it costs whole devices, though the server's blocks keep the full one.
    """
    grid = np.meshgrid(ranks, np.arange(1, problem.shape.blocks), range(len(codecs)), indexing="ij")
    rank, cut, codec = (column.ravel().astype(np.int64) for column in grid)
    count, nothing = cut.size, np.zeros(cut.size)
    workload, measured = problem.workload, problem.measurements
    rows = replace(
        whole_model(
            np.arange(count),
            rank=workload.rank,
            local_steps=workload.local_steps,
            share=np.ones(count),
        ),
        rank=rank,
        cut=cut,
        codec_index=codec,
        codecs=codecs,
    )
    cost = line_cost(problem, rows, np.ones(count, np.int64))
    lost = nothing
    if measured is not None:
        lower = {each: measured.rank_rounds(each) for each in ranks if each < workload.rank}
        lost = np.array(
            [
                (measured.cut or 0.0)
                + measured.codec_rounds(row.cut, row.codec)
                + lower.get(row.rank, 0.0)
                for row in rows
            ]
        )
    return {
        "prune_heads": nothing,
        "prune_ffn": nothing,
        "pruned": nothing,
        "rank": rows.rank,
        "local_steps": rows.local_steps,
        "cut": rows.cut,
        "codec": rows.codec_index,
        "upload": np.zeros(count, np.int64),
        "log_rounds": lost,
        "flops": cost.forward_flops,
        "up_bytes": cost.up_bytes,
        "backward_flops": cost.backward_flops,
        "gradient_bytes": cost.gradient_bytes,
        "server_flops": cost.server_flops,
        "adapter_up_bytes": cost.adapter_up_bytes,
        "adapter_down_bytes": cost.adapter_down_bytes,
        "server_bytes": cost.server_bytes,
        "peak_bytes": cost.device_peak_bytes,
    }
