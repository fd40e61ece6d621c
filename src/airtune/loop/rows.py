"""What a round leaves in the records: its line of `rounds.jsonl` and its rows of `devices.csv`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airtune.engine.base import Execution
from airtune.engine.checkpoint import Checkpoint
from airtune.model.state import GlobalState
from airtune.plan import Assignments, Floats, Problem, RoundPlan, State
from airtune.records import DEVICE_COLUMNS

Record = dict[str, Any]

STATUSES = ("ok", "late", "refused", "failed", "absent")
_NOTHING = frozenset({
    "prune_heads", "prune_ffn", "pruned", "share", "download_bytes", "upload_bytes", "flops",
    "peak_bytes", "energy_j", "judging_s", "server_s", "step_up_bytes", "step_down_bytes",
})  # fmt: skip
"""Columns that are 0 for a device that was told nothing; other numbers are not known."""
MAX_REASONS = 10
"""Distinct reasons in a round's record; every device's own stands in `devices.csv`."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round, done."""

    plan: RoundPlan | None
    """None where no device was there."""
    left_out: Mapping[int, str]
    """Devices that were there and have too few bytes of the month left, and why."""
    execution: Execution | None
    state: GlobalState
    method: State
    start_s: float
    end_s: float


def round_record(
    problem: Problem, now: Checkpoint, done: Round, validation: Mapping[str, float] | None
) -> Record:
    """Return a round's line of `rounds.jsonl`.

    Args:
        problem: of the run.
        now: before the round.
        done: the round.
        validation: of the model after it; None = not judged.
    """
    record: Record = {
        "round": now.rounds,
        "start_s": done.start_s,
        "end_s": done.end_s,
        "round_s": done.end_s - done.start_s,
        "predicted_s": None,
        "upload_bytes": 0.0,
        "download_bytes": 0.0,
        "energy_j": 0.0,
        "train_loss": None,
        "counts": dict.fromkeys(STATUSES, 0),
        "validation": validation,
        "solution": None,
        "notes": {},
        "reasons": [],
    }
    not_asked = {} if done.plan is None else done.plan.not_asked
    record["counts"]["absent"] = len(done.left_out.keys() - not_asked.keys())
    if done.plan is None or done.execution is None:
        record["reasons"] = list(dict.fromkeys(done.left_out.values()))[:MAX_REASONS] or [
            "no device was available"
        ]
        return record
    results, setup = done.execution.results, done.execution.setup
    record |= {
        **_expected(done),
        "upload_bytes": float(results.upload_bytes.sum()) + setup.upload_bytes,
        "download_bytes": float(results.download_bytes.sum()) + setup.download_bytes,
        "energy_j": float(np.nansum(results.energy_j)) + setup.energy_j,
        "train_loss": _train_loss(problem, done.execution),
        "counts": {
            name: record["counts"][name] + int(np.sum(results.status == name)) for name in STATUSES
        },
        "solution": None if done.plan.solution is None else asdict(done.plan.solution),
        "notes": dict(done.plan.notes),
        "reasons": list(dict.fromkeys(done.plan.reasons))[:MAX_REASONS],
    }
    if done.execution.validation is not None:
        record["validation_before"] = dict(done.execution.validation)
    if setup.duration_s or setup.faults:
        record["setup"] = asdict(setup)
    if (planned := done.execution.planned_peak_bytes) is not None:
        names = [problem.devices.names[device] for device in results.device]
        record["planned_peak_bytes"] = dict(zip(names, planned.tolist(), strict=True))
    if done.execution.learnt is not None:
        record["learnt"] = dict(done.execution.learnt)
    if done.execution.buffered is not None:
        record["buffered"] = dict(done.execution.buffered)
    if done.execution.split is not None:
        record["split"] = dict(done.execution.split)
    return record


def _expected(done: Round) -> Record:
    """Return how long the round was expected to take: by its engine if it knows better, or its plan."""
    if done.plan is None or done.execution is None:
        return {}
    expected = done.execution.expected
    if expected is None:
        return {"predicted_s": done.plan.predicted_s}
    return {
        "predicted_s": expected.middle_s,
        "predicted_low_s": expected.low_s,
        "predicted_high_s": expected.high_s,
    }


def _train_loss(problem: Problem, execution: Execution) -> float:
    """Return the last local loss, weighted over the devices whose update counts."""
    results = execution.results
    counted = (results.status == "ok") & np.isfinite(results.loss_last)
    weight = problem.devices.weight[results.device[counted]]
    return float(results.loss_last[counted] @ weight / weight.sum()) if weight.sum() else math.nan


def device_columns(problem: Problem, done: Round) -> Mapping[str, NDArray[Any]]:
    """Return a round's rows of `devices.csv`: what each device was told and what came of it."""
    out = _left_out_columns(problem, done.left_out)
    if done.plan is None or done.execution is None:
        return out
    assignments, execution = done.plan.assignments, done.execution
    results = execution.results
    shared = (
        "device",
        "download_s",
        "compute_s",
        "upload_s",
        "finish_s",
        "download_bytes",
        "upload_bytes",
        "flops",
        "peak_bytes",
        "energy_j",
        "loss_first",
        "loss_last",
        "samples",
        "importance",
        "status",
    )
    columns: dict[str, NDArray[Any]] = {name: getattr(results, name) for name in shared}
    pairs = zip(execution.faults, done.plan.reasons, strict=True)
    judging_s = _known(results.judging_s, len(assignments), 0.0)
    known_s = results.download_s + judging_s + results.compute_s + results.upload_s
    columns |= {
        "judging_s": judging_s,
        **{
            name: _known(getattr(results, name), len(assignments), np.nan)
            for name in ("server_s", "step_up_bytes", "step_down_bytes", "predicted_s")
        },
        "wait_s": np.maximum(results.finish_s - known_s, 0.0),
        "name": np.array([problem.devices.names[device] for device in assignments.device], object),
        "prune_heads": assignments.prune_heads,
        "prune_ffn": assignments.prune_ffn,
        "pruned": problem.shape.pruned_fraction(assignments.prune_heads, assignments.prune_ffn),
        "rank": assignments.rank,
        "rank_left": assignments.rank if results.rank_left is None else results.rank_left,
        "cut": assignments.cut,
        "codec": np.array(
            [assignments.codecs[index].label for index in assignments.codec_index], object
        ),
        "upload_codec": _upload_labels(problem, assignments),
        "share": assignments.share,
        "bandwidth_hz": execution.bandwidth_hz,
        "local_steps": assignments.local_steps,
        "memory_bytes": execution.memory_bytes,
        "reason": np.array([fault or reason for fault, reason in pairs], object),
    }
    return {name: np.concatenate([column, out[name]]) for name, column in columns.items()}


def _known(column: Floats | None, count: int, usual: float) -> Floats:
    return np.full(count, usual) if column is None else column


def _upload_labels(problem: Problem, assignments: Assignments) -> NDArray[Any]:
    """Return how each update is coded, in words."""
    labels = np.full(len(assignments), "", object)
    for spec, rows in assignments.upload_groups(problem.workload.upload):
        labels[rows] = spec.label
    return labels


def _left_out_columns(problem: Problem, left_out: Mapping[int, str]) -> Mapping[str, NDArray[Any]]:
    """Return the rows of devices that were told nothing: no work, no bytes, and the reason."""
    device = np.array(sorted(left_out), np.int64)
    columns: dict[str, NDArray[Any]] = {
        name: np.zeros(len(device)) if name in _NOTHING else np.full(len(device), np.nan)
        for name in DEVICE_COLUMNS
        if name != "round"
    }
    columns |= {
        name: np.zeros(len(device), np.int64)
        for name in ("rank", "rank_left", "cut", "local_steps", "samples")
    }
    texts = {
        "name": [problem.devices.names[index] for index in device],
        "status": ["absent"] * len(device),
        "codec": [""] * len(device),
        "upload_codec": [""] * len(device),
        "reason": [left_out[index] for index in device.tolist()],
    }
    columns |= {name: np.array(text, object) for name, text in texts.items()}
    memory_bytes = problem.devices.memory_bytes
    if memory_bytes is not None:
        columns["memory_bytes"] = memory_bytes[device]
    return columns | {"device": device}
