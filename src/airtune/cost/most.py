"""Upper bounds of the bytes that a device of a plan receives and sends in a round.

`prediction` says what is expected of coded payloads; caps need what they cannot exceed. Every stream
of a payload is stored as it is where coding does not gain, so a tensor of N entries, of which
K = keep N are kept, takes at most, beside its header,

    identity 4 N    fp16 2 N    topk N / 8 + K + 2 channels + 3 rows    deadzone 2 N + 2 channels

The last two may send up to an eighth of the rows apart, at 2 bytes an entry and a bit a row, where a
row has at least 16 entries.

Sequences are priced at their padded length, and every step as if nothing were remembered.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from airtune.cost.coded import FEWEST_CHANNELS, MOST_APART, ROW_BYTES
from airtune.cost.payload import (
    broadcast_bytes,
    lora_parameters,
    score_bytes,
    trained_parameters,
    widest,
)
from airtune.cost.split import INTEGER_BYTES
from airtune.plan import Assignments, CodecSpec, Floats, Problem

FRAME_BYTES = 128
"""Header, table of streams, checksum and the message around a payload."""
_PARTS = 2
"""Payloads in which a batch may cross: samples that are new, and differences of the others."""
LISTED_BYTES = 12
"""Of a remembered sample, in the list with which a stream begins: its number and a stamp."""


def most_payload_bytes(
    elements: ArrayLike, spec: CodecSpec, *, channels: int = 1, parts: int = 1
) -> Floats:
    """Return what the payloads of tensors cannot exceed.

    Args:
        elements: entries of each tensor, any shape.
        spec: the codec.
        channels: length of the last axis.
        parts: payloads that a tensor is cut into, along its first axis.

    >>> most_payload_bytes([1000], CodecSpec("topk", keep=0.1, bits=4)).tolist()
    [355.0]
    """
    count = np.asarray(elements, np.float64)
    each = {"identity": 4.0, "fp16": 2.0, "topk": 1 / 8 + spec.keep, "deadzone": 2.0}[spec.kind]
    rounding = 2.0 + (2.0 * channels if spec.kind == "deadzone" else 0.0)
    if spec.kind in ("topk", "deadzone") and channels >= FEWEST_CHANNELS:
        each += MOST_APART * max(2.0 - each, 0.0) + 1 / (8 * channels)
        rounding += 2.0
        if spec.kind == "topk":
            each, rounding = each + ROW_BYTES / channels, rounding + 2.0 * channels
    return np.asarray(parts * (FRAME_BYTES + rounding) + each * count)


def most_bytes(problem: Problem, assignments: Assignments) -> Floats:
    """Return what each device of a plan can receive and send in a round, at most, shape (n,).

    Args:
        problem: model, workload and local work.
        assignments: n devices.

    Raises:
        ModelError: if a LoRA target is no layer of this family.
    """
    return most_download_bytes(problem, assignments) + most_upload_bytes(problem, assignments)


def most_upload_bytes(problem: Problem, assignments: Assignments) -> Floats:
    """Return what each device can send in a round, at most, shape (n,)."""
    shape, workload = problem.shape, problem.workload
    numbers = trained_parameters(shape, workload, assignments)
    whole = _update_bytes(problem, assignments, numbers)
    whole = whole + score_bytes(shape, workload, assignments)
    is_cut = assignments.cut > 0
    if not is_cut.any():
        return whole
    parts = _update_bytes(problem, assignments, _part_parameters(problem, assignments))
    return np.where(is_cut, parts + assignments.local_steps * _step(problem, assignments)[0], whole)


def most_download_bytes(problem: Problem, assignments: Assignments) -> Floats:
    """Return what each device can receive in a round, at most, shape (n,)."""
    shape, workload = problem.shape, problem.workload
    spec, one = workload.download, widest(assignments)
    size = broadcast_bytes(shape, workload, assignments)
    if spec.kind != "identity":
        size = float(_coded_bytes(spec, trained_parameters(shape, workload, one))[0])
    whole = np.full(len(assignments), size)
    is_cut = assignments.cut > 0
    if not is_cut.any():
        return whole
    numbers = _part_parameters(problem, assignments)
    parts = numbers * float(workload.adapter_bytes)
    if spec.kind != "identity":
        parts = _coded_bytes(spec, numbers)
    return np.where(is_cut, parts + assignments.local_steps * _step(problem, assignments)[1], whole)


def stream_bytes(problem: Problem, assignments: Assignments) -> Floats:
    """Return what the steps of each cut device take, both ways, at most, shape (n,)."""
    if not (assignments.cut > 0).any():
        return np.zeros(len(assignments))
    up, down = _step(problem, assignments)
    frozen = problem.work.device_frozen
    remembers = np.array([frozen or codec.predict for codec in assignments.codecs])
    listed = LISTED_BYTES * problem.devices.samples[assignments.device]
    steps = assignments.local_steps * (up + down) + listed * remembers[assignments.codec_index]
    return np.where(assignments.cut > 0, steps, 0.0)


def _update_bytes(problem: Problem, assignments: Assignments, numbers: ArrayLike) -> Floats:
    """Return the most that numbers of an update take: factors A, factors B, and a head, (n,)."""
    found, count = np.zeros(len(assignments)), np.asarray(numbers, np.float64)
    for spec, rows in assignments.upload_groups(problem.workload.upload):
        plain = count * problem.workload.adapter_bytes
        found = found + rows * (plain if spec.kind == "identity" else _coded_bytes(spec, count))
    return found


def _coded_bytes(spec: CodecSpec, numbers: ArrayLike) -> Floats:
    """Return the most that factors A, factors B and a head take once coded."""
    return most_payload_bytes(numbers, spec, parts=3)


def _part_parameters(problem: Problem, assignments: Assignments) -> Floats:
    """Return the numbers of a cut device's adapters, with its head where it has one, (n,)."""
    shape, workload = problem.shape, problem.workload
    adapters = lora_parameters(shape, workload, assignments).astype(np.float64)
    has_head = workload.trains_head and problem.work.labels == "stay"
    kept = 0.0 if problem.work.device_frozen else 1.0
    return kept * adapters + (float(shape.trained_head_parameters) if has_head else 0.0)


def _step(problem: Problem, assignments: Assignments) -> tuple[Floats, Floats]:
    """Return what a step of each row takes up and down, at most, (n,)."""
    shape, workload, work = problem.shape, problem.workload, problem.work
    tokens = workload.batch * workload.tokens
    reads = workload.batch * (1 if shape.task == "classification" else workload.tokens)
    up, down = [], []
    for codec in assignments.codecs:
        # a gradient at positions that both ends know has the activation's share of entries
        back = (codec, work.gradient or codec)
        hidden = _largest(reads * shape.width, back, shape.width) if work.labels == "stay" else 0.0
        returned = 0.0 if work.device_frozen else _largest(tokens * shape.width, back, shape.width)
        up.append(_largest(tokens * shape.width, (codec,), shape.width) + hidden)
        down.append(returned + hidden)
    # lengths, numbers of samples, labels
    beside = INTEGER_BYTES * (2 * workload.batch + tokens)
    index = assignments.codec_index
    return np.array(up)[index] + beside, np.array(down)[index]


def _largest(elements: int, specs: tuple[CodecSpec, ...], width: int) -> float:
    sizes = [most_payload_bytes(elements, spec, channels=width, parts=_PARTS) for spec in specs]
    return float(np.max(sizes))
