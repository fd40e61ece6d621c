"""How many bytes coded adapters really take, against what the formulas of `airtune.cost` expect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from airtune.cost import split_cost
from airtune.cost.payload import broadcast_bytes, score_bytes, upload_bytes
from airtune.plan import Assignments, CodedScale, Floats, Problem, whole_model
from airtune.records import RunRecord


def coded_scale(problem: Problem, record: RunRecord) -> CodedScale:
    """Return the real bytes of a run's coded adapters over those expected.

    It is 1 where adapters cross as they are, and for what goes down to devices that are cut, whose
    records hold the expected bytes.

    Args:
        problem: of the run, with a scale of 1.
        record: of the run, all of whose devices took part in every round.
    """
    real, expected = np.zeros(2), np.zeros(2)
    for row in record.rounds:
        here = record.devices["round"] == row["round"]
        columns = {name: column[here] for name, column in record.devices.items()}
        told = _told(columns)
        sent = np.array([columns["upload_bytes"].sum(), columns["download_bytes"].sum()])
        if np.any(told.cut > 0):
            cost = split_cost(problem, told)
            sent = np.array([row["split"][f"adapter_{way}_bytes"] for way in ("up", "down")])
            wanted = np.array([cost.adapter_up_bytes.sum(), cost.adapter_down_bytes.sum()])
        else:
            scores = score_bytes(problem.shape, problem.workload, told).sum()
            sent[0] -= scores
            wanted = np.array(
                [
                    upload_bytes(problem.shape, problem.workload, told).sum() - scores,
                    len(told) * broadcast_bytes(problem.shape, problem.workload, told),
                ]
            )
        real, expected = real + sent, expected + wanted
    specs = problem.workload.upload, problem.workload.download
    up, down = (
        float(there / wanted) if spec.kind != "identity" and wanted > 0.0 else 1.0
        for spec, there, wanted in zip(specs, real, expected, strict=True)
    )
    return CodedScale(up, down)


def crossed_bytes(problem: Problem, record: RunRecord) -> tuple[float, float]:
    """Return the bytes of activations and of gradients in a step of a device, 0 where none is cut."""
    rows = [row["split"] for row in record.rounds if "split" in row]
    steps = max(len(rows), 1) * len(problem.devices) * problem.workload.local_steps
    up, down = (
        sum(float(row[name]) for row in rows) / steps
        for name in ("activation_up_bytes", "gradient_down_bytes")
    )
    return up, down


def mean_scale(scales: Sequence[CodedScale]) -> CodedScale:
    """Return the mean over short runs."""
    return CodedScale(
        float(np.mean([scale.up for scale in scales])),
        float(np.mean([scale.down for scale in scales])),
    )


def _told(columns: dict[str, Floats]) -> Assignments:
    """Return what a round's devices were told, as far as adapters' sizes depend on it."""
    device = columns["device"].astype(np.int64)
    ones = np.ones(len(device))
    return replace(
        whole_model(device, rank=1, local_steps=1, share=ones),
        rank=columns["rank"].astype(np.int64),
        cut=columns["cut"].astype(np.int64),
        prune_heads=columns["prune_heads"],
        prune_ffn=columns["prune_ffn"],
    )
