"""What each device may do in a split: its menu of cuts and codecs, priced line by line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from airtune.cost import SplitCost, line_cost
from airtune.errors import InfeasibleError
from airtune.fleet.rates import downlink_bps
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
from airtune.solve import SplitProblem
from airtune.units import BITS_PER_BYTE, format_bytes


@dataclass(frozen=True, slots=True)
class Lines:
    """The lines of a menu: every cut with every codec."""

    cut: Ints
    """Shape (k,)."""
    codec: Ints
    """Index into `codecs`, shape (k,)."""
    codecs: tuple[CodecSpec, ...]
    loss: Floats
    """Relative loss increase of a run that only knows this line, shape (k,)."""

    @classmethod
    def of(
        cls,
        cuts: Sequence[int],
        codecs: tuple[CodecSpec, ...],
        measured: Measurements | None,
        *,
        rounds: int,
    ) -> Lines:
        """Cross cuts with codecs, each at what it costs after so many rounds; 0 without a measurement."""
        cut, codec = (grid.ravel() for grid in np.meshgrid(cuts, range(len(codecs)), indexing="ij"))
        loss = [
            0.0 if measured is None else measured.codec_loss(int(c), codecs[k], rounds=rounds)
            for c, k in zip(cut, codec, strict=True)
        ]
        return cls(cut.astype(np.int64), codec.astype(np.int64), codecs, np.array(loss))

    def __len__(self) -> int:
        return int(self.cut.shape[0])


def check_cut(cut: int, blocks: int) -> None:
    """Refuse a cut that leaves the server nothing.

    Raises:
        InfeasibleError: with the last cut there is.
    """
    if cut >= blocks:
        raise InfeasibleError(
            f"the cut is after block {cut}, but it must leave the server one of {blocks}; set "
            f"method.cut to at most {blocks - 1}"
        )


@dataclass(frozen=True, slots=True)
class Priced:
    """A menu at the costs of n devices; every table has shape (n, k)."""

    cost: SplitCost
    """Of n * k rows, device-major."""
    allowed: Bools
    """Whether a device's memory holds the line."""
    peak_bytes: Floats

    def table(self, column: Floats) -> Floats:
        """Return a column of the cost as a table."""
        return column.reshape(self.allowed.shape)


def price(problem: Problem, seen: Seen, lines: Lines) -> Priced:
    """Return what every line costs every device that is there.

    Raises:
        InfeasibleError: if a device's memory fits no line; the message names it.
    """
    n, k = seen.device.shape[0], len(lines)
    rows = _rows(problem, np.tile(np.arange(k), n), lines)
    cost = line_cost(problem, rows, np.repeat(problem.devices.samples[seen.device], k))
    peak = cost.device_peak_bytes.reshape(n, k)
    allowed = peak <= seen.memory_bytes[:, None]
    none = np.asarray(~allowed.any(axis=1), np.bool_)
    if none.any():
        row, others = seen.short_of_memory(none)
        least = int(np.argmin(peak[row]))
        raise InfeasibleError(
            f"device {seen.names[row]} has {format_bytes(seen.memory_bytes[row])} of memory, but "
            f"its part of a cut after block {lines.cut[least]} needs "
            f"{format_bytes(peak[row, least])}{others}; cut earlier, shorten the sequences, lower the "
            "batch, freeze the device part or leave the device out"
        )
    return Priced(cost, allowed, peak)


def split_problem(
    problem: Problem, seen: Seen, lines: Lines, priced: Priced, budget: float
) -> SplitProblem:
    """Return the large timescale's problem of the able devices.

    The exchange of adapters is spread over the round's steps: a device's download comes before its
    forward pass and its update goes up with the activations. No device takes a codec that costs more
    than the budget while its memory holds a milder line: the budget is a mean over the rows of data, so
    devices with few rows would get the coarsest codecs.
    """
    able, steps = seen.able, problem.workload.local_steps
    table, cost = priced.table, priced.cost
    speed = seen.of(seen.flops_per_s)[:, None]
    down = downlink_bps(seen.links, seen.device[able])[:, None] / BITS_PER_BYTE
    fetch_s = table(cost.adapter_down_bytes)[able] / down / steps
    weight = seen.of(seen.weight)
    weight = weight / max(float(np.sum(weight)), 1e-300)
    return SplitProblem(
        curves=seen.curves,
        forward_s=table(cost.fresh * cost.forward_flops)[able] / speed + fetch_s,
        bits=table(cost.up_bytes + cost.adapter_up_bytes / steps)[able] * BITS_PER_BYTE,
        down_s=table(cost.gradient_bytes)[able] / down,
        backward_s=table(cost.backward_flops)[able] / speed,
        server_s=table(cost.server_flops)[able] / problem.server_flops_per_s,
        loss=weight[:, None] * lines.loss,
        allowed=_mild(priced.allowed[able], lines.loss <= budget),
        loss_budget=budget,
        names=seen.able_names,
    )


def _mild(allowed: Bools, mild: Bools) -> Bools:
    """Return the mild lines of what is allowed; all of it for a device that has none."""
    both = allowed & mild
    return np.asarray(np.where(both.any(axis=1, keepdims=True), both, allowed), np.bool_)


def told(problem: Problem, seen: Seen, lines: Lines, index: Ints, share: Floats) -> Assignments:
    """Return the assignments of devices that take these lines, shape (n,)."""
    return _rows(problem, index, lines, device=seen.device, share=share)


def _rows(
    problem: Problem,
    index: Ints,
    lines: Lines,
    *,
    device: Ints | None = None,
    share: Floats | None = None,
) -> Assignments:
    count, workload = index.shape[0], problem.workload
    return replace(
        whole_model(
            np.arange(count) if device is None else device,
            rank=workload.rank,
            local_steps=workload.local_steps,
            share=np.ones(count) if share is None else share,
        ),
        cut=lines.cut[index],
        codec_index=lines.codec[index],
        codecs=lines.codecs,
    )
