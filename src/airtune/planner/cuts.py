"""Where a model can be cut for a device: memory, bytes and time of every cut."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from airtune.cost import cut_rows, predict, split_cost
from airtune.fleet import Fleet
from airtune.plan import CodecSpec, Floats, ModelShape, Problem, Workload

PLANNED_CODEC = CodecSpec("deadzone", step=0.4)
"""What a planner prices crossings with where nothing was chosen: a real language model bears it."""
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class CutChoice:
    """One cut of a model for a device and an edge server."""

    cut: int
    """Blocks on the device; 0 = the whole model."""
    precision: str
    peak_bytes: float
    fits: bool
    server_peak_bytes: float
    """For this one device."""
    step_up_bytes: float
    step_down_bytes: float
    round_s: float
    """With the server to itself."""
    frozen_peak_bytes: float
    """Of the device, were its part frozen."""


def cut_choices(
    shape: ModelShape, workload: Workload, fleet: Fleet, precision: str
) -> tuple[CutChoice, ...]:
    """Return up to eight cuts spread over a model, for the first device of a fleet.

    Args:
        shape: The model.
        workload: Batch, length, steps and precision.
        fleet: Gives memory, speed, link and server.
        precision: Of the base, in words.
    """
    if shape.blocks < 2:
        return ()
    count = min(_SHOWN, shape.blocks - 1)
    cuts = np.unique(np.linspace(1, shape.blocks - 1, count).round().astype(np.int64))
    return tuple(_choice(shape, workload, fleet, precision, int(cut)) for cut in cuts)


def feasible_cuts(peaks: Floats, memory_bytes: float) -> str:
    """Return in words which cuts a memory leaves, by `cut_peaks`.

    >>> from airtune.cost import cut_peaks
    >>> from airtune.methods import sample_problem
    >>> peaks = cut_peaks(sample_problem())
    >>> feasible_cuts(peaks, 5e6), feasible_cuts(peaks, 1e5)
    ('cut after block 1-2 of 4', 'no cut fits')
    """
    fits = np.flatnonzero(peaks <= memory_bytes) + 1
    if not fits.size:
        return "no cut fits"
    span = f"{fits[0]}" if fits.size == 1 else f"{fits[0]}-{fits[-1]}"
    return f"cut after block {span} of {len(peaks) + 1}"


def _choice(
    shape: ModelShape, workload: Workload, fleet: Fleet, precision: str, cut: int
) -> CutChoice:
    samples = np.full(len(fleet), workload.batch * workload.local_steps)
    problem = Problem(
        shape,
        fleet.profiles(samples),
        workload,
        rounds=1,
        seed=0,
        server_flops_per_s=fleet.server.flops_per_s,
    )
    told = cut_rows(workload, np.array([cut], np.int64), PLANNED_CODEC)
    cost = split_cost(problem, told)
    frozen = split_cost(replace(problem, work=replace(problem.work, device_frozen=True)), told)
    expected = predict(
        problem, told, links=fleet.links_at(0, 0, 0.0), flops_per_s=fleet.flops_at(0)
    )
    return CutChoice(
        cut=cut,
        precision=precision,
        peak_bytes=float(cost.device_peak_bytes[0]),
        fits=bool(cost.device_peak_bytes[0] <= fleet.memory_bytes[0]),
        server_peak_bytes=cost.server_peak_bytes,
        step_up_bytes=float(cost.up_bytes[0]),
        step_down_bytes=float(cost.gradient_bytes[0]),
        round_s=expected.round_s,
        frozen_peak_bytes=float(frozen.device_peak_bytes[0]),
    )
