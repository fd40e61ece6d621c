"""What a device must hold for what it is asked: the whole model, or the blocks below a cut.

whole     the memory holds a pass over the dense model, and a round through a cut beside it
a part    otherwise: the blocks of the largest cut that the memory can train
"""

from __future__ import annotations

import numpy as np

from airtune.cost.memory import pass_bytes, peak_memory
from airtune.cost.split import line_cost
from airtune.plan import (
    Assignments,
    CodecSpec,
    Floats,
    Ints,
    ModelShape,
    Problem,
    Workload,
    whole_model,
)


def dense_pass_bytes(shape: ModelShape, workload: Workload) -> float:
    """Return what a pass of one batch over the dense model takes, no gradients kept.

    Weights, adapters, one block's tensors and the logits that exist at a time: what judging a model
    needs, or measuring scores by forward passes.
    """
    row = whole_model(np.zeros(1, np.int64), rank=workload.rank, local_steps=1, share=np.ones(1))
    memory = peak_memory(shape, workload, row)
    passing = pass_bytes(shape, workload, row)
    return float((memory.weights + memory.adapters + passing + memory.logits)[0])


def cut_rows(workload: Workload, cuts: Ints, codec: CodecSpec) -> Assignments:
    """Return a row for each cut, one codec for all; the devices' numbers stand for nothing."""
    count, zero = len(cuts), np.zeros(len(cuts))
    return Assignments(
        device=np.arange(count),
        prune_heads=zero,
        prune_ffn=zero,
        rank=np.full(count, workload.rank),
        share=np.ones(count),
        local_steps=np.full(count, workload.local_steps),
        cut=cuts,
        codec_index=np.zeros(count, np.int64),
        codecs=(codec,),
    )


def cut_peaks(problem: Problem, *, predicts: bool = False) -> Floats:
    """Return a device's peak in bytes at every cut, rising, shape (blocks - 1,).

    Args:
        problem: Of its devices the one with most samples counts.
        predicts: A device remembers what it sent of every sample (predictive coding).
    """
    cuts = np.arange(1, problem.shape.blocks)
    samples = np.full(cuts.size, np.max(problem.devices.samples))
    told = cut_rows(problem.workload, cuts, CodecSpec(predict=predicts))
    return line_cost(problem, told, samples).device_peak_bytes


def cut_weights(shape: ModelShape, workload: Workload, cuts: Ints) -> Floats:
    """Return the bytes of the base's weights that a device holds below each cut, (n,); 0 = all."""
    return peak_memory(shape, workload, cut_rows(workload, cuts, CodecSpec())).weights


def blocks_held(problem: Problem, memory_bytes: Floats, *, cut: int | None = None) -> Ints:
    """Return how many blocks each device holds in a run that may cut the model.

    Args:
        problem: Model, workload and local work.
        memory_bytes: Of each device, shape (n,).
        cut: Blocks on every device, where the method fixes them; None = it chooses.

    Returns:
        Shape (n,): all blocks where the memory holds the whole model, or else those of the largest
        cut that it can train, and of the least where it can train none.
    """
    shape = problem.shape
    if shape.blocks < 2:
        return np.full(len(memory_bytes), shape.blocks, np.int64)
    peaks = cut_peaks(problem)
    # a cut that leaves the server nothing is the method's to refuse
    fixed = None if cut is None else np.array([min(cut, shape.blocks - 1)], np.int64)
    cuts = np.arange(1, shape.blocks) if fixed is None else fixed
    peaks = peaks[cuts - 1]
    beside = peaks - cut_weights(shape, problem.workload, cuts)
    fits = peaks <= memory_bytes[:, None]
    fits[:, 0] = True
    most = np.max(np.where(fits, cuts, 0), axis=1)
    whole = float(cut_weights(shape, problem.workload, np.zeros(1, np.int64))[0])
    trained = whole + np.max(np.where(fits, beside, 0.0), axis=1)
    dense = dense_pass_bytes(shape, problem.workload)
    is_whole = memory_bytes >= np.maximum(dense, trained)
    return np.asarray(np.where(is_whole, shape.blocks, most), np.int64)
