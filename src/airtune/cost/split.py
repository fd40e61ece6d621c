"""What a split costs: work on either side of the cut, bytes across it, memory at both ends.

A step of a cut device: forward through its blocks, the activation up, the server's pass over it,
the gradient down, backward through its blocks. Payloads are the expected ones of the row's codec
and, downwards, of `work.gradient`: those that a calibration measured on the model's own tensors, at
real tokens, where there is one. Otherwise formulas count, and sequences their padded length. With labels that stay, the last hidden state and its gradient cross too and the head
works on the device. With a frozen device part only samples that are new cross, no gradient returns
and no adapter is exchanged; bytes are then the mean over the run's rounds, as are those of
predictive coding, which saves error and not bytes.

A sequential server serves one device after the other, so a device has its link to itself; the
parallel forms share it.

Source: Split Fine-Tuning for Large Language Models in Wireless Networks (arXiv 2501.09237) for the
protocol; the formulas are this project's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from airtune.cost.coded import payload_bytes
from airtune.cost.flops import forward_flops, head_flops, server_flops, train_flops
from airtune.cost.graph import kept
from airtune.cost.memory import head_work_bytes, pass_bytes, peak_memory, server_saved_bytes
from airtune.cost.payload import adapter_bytes, held_bytes, lora_parameters
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
from airtune.units import BITS_PER_BYTE

INTEGER_BYTES = 4
"""Of a label, a length or a sample's number beside a tensor."""
STAMP_BYTES = 16
"""With which a message of remembered samples begins."""
SINGLE_BYTES = 4
"""Of a number of a remembered activation."""


@dataclass(frozen=True, slots=True)
class SplitCost:
    """A split in columns of shape (n,), a local step unless said otherwise; 0 for an uncut row."""

    forward_flops: Floats
    """On the device, for a whole batch."""
    fresh: Floats
    """Fraction of a batch that the device runs forward: below 1 where its part is frozen and the
    server remembers; the mean over the run."""
    backward_flops: Floats
    """On the device, with the head's work where labels stay; 0 with a frozen device part."""
    server_flops: Floats
    """Of the server for this device's samples, forward and backward."""
    activation_bytes: Floats
    """Coded tensors that go up."""
    gradient_bytes: Floats
    """Coded tensors that come down."""
    beside_bytes: Floats
    """Labels, lengths and numbers of samples, which go up uncoded."""
    adapter_up_bytes: Floats
    """A round: the device's part of the adapters."""
    adapter_down_bytes: Floats
    """A round."""
    device_peak_bytes: Floats
    remembered_bytes: Floats
    """Reconstructions that a device holds at the end of the run; in `device_peak_bytes`."""
    server_bytes: Floats
    """Memory that the server needs for this device alone, beside the model and its adapters."""
    server_peak_bytes: float
    """All devices of the plan together."""

    @property
    def up_bytes(self) -> Floats:
        """All that goes up in a step, shape (n,)."""
        return self.activation_bytes + self.beside_bytes


def split_cost(problem: Problem, assignments: Assignments) -> SplitCost:
    """Return what the cut rows of a plan cost.

    Args:
        problem: Model, workload, local work, and how many samples each device holds.
        assignments: n devices; rows without a cut have zeros.

    Raises:
        ModelError: if a LoRA target is no layer of this family.
    """
    samples = problem.devices.samples[assignments.device]
    return line_cost(problem, assignments, samples)


def line_cost(problem: Problem, assignments: Assignments, samples: Ints) -> SplitCost:
    """Return what rows cost that need be no devices of the fleet: lines of a menu, for instance.

    Args:
        problem: As for `split_cost`.
        assignments: Rows; `device` is not read.
        samples: How many each holds, shape (n,).
    """
    shape, workload, work = problem.shape, problem.workload, problem.work
    is_cut = (assignments.cut > 0).astype(np.float64)
    frozen = float(work.device_frozen)
    stays = work.labels == "stay"
    forward = forward_flops(shape, workload, assignments)
    backward = train_flops(shape, workload, assignments) / assignments.local_steps - forward
    head = head_flops(shape, workload) if stays else 0.0
    up, down = _payloads(problem, assignments)
    fresh = fresh_fraction(problem, samples) if work.device_frozen else np.ones(len(samples))
    up, beside = up * fresh, _beside(problem, assignments, fresh)
    if stays:
        up = up + _head_payloads(problem, assignments)
    remembered = is_cut * _remembers(assignments) * remembered_bytes(problem, samples)
    if work.device_frozen:
        # the server remembers for both: what is not sent again the device need not know
        device_remembers = np.zeros(len(samples))
        remembered = is_cut * remembered_bytes(problem, samples)
    else:
        device_remembers = remembered
    peak = _device_peak(problem, assignments) + device_remembers
    # the server's blocks have the full rank, whatever the device's own have
    served_rows = replace(assignments, rank=np.full_like(assignments.rank, workload.rank))
    served = is_cut * _server_each(problem, served_rows)
    return SplitCost(
        forward_flops=is_cut * forward,
        fresh=fresh,
        backward_flops=is_cut * ((1.0 - frozen) * backward + head),
        server_flops=is_cut * (server_flops(shape, workload, served_rows) - head),
        activation_bytes=is_cut * up,
        gradient_bytes=is_cut * down,
        beside_bytes=is_cut * beside,
        adapter_up_bytes=is_cut * _exchanged(problem, assignments, up=True),
        adapter_down_bytes=is_cut * _exchanged(problem, assignments, up=False),
        device_peak_bytes=is_cut * peak,
        remembered_bytes=device_remembers,
        server_bytes=served + remembered,
        server_peak_bytes=_server_peak(problem, assignments, served, remembered),
    )


def fresh_fraction(problem: Problem, samples: Ints) -> Floats:
    """Return the fraction of visits to samples that are first visits, over the whole run, (n,).

    A round draws `min(steps * batch, n)` of n samples without repeating any, every round anew, so
    after R rounds `n (1 - (1 - m / n)^R)` different ones are expected to have been seen.
    """
    visits = problem.workload.local_steps * problem.workload.batch
    return seen_samples(problem, samples) / float(problem.rounds * visits)


def seen_samples(problem: Problem, samples: Ints) -> Floats:
    """Return how many different samples a device is expected to see in the run, (n,).

    >>> import numpy as np
    >>> from airtune.methods import sample_problem
    >>> problem = sample_problem()  # 10 rounds of 5 steps of 4
    >>> seen_samples(problem, np.array([20, 10**9])).round().tolist()
    [20.0, 200.0]
    """
    held = np.maximum(samples, 1).astype(np.float64)
    drawn = np.minimum(problem.workload.local_steps * problem.workload.batch, held)
    unseen = np.exp(problem.rounds * np.log1p(-np.minimum(drawn / held, 1.0 - 1e-12)))
    return np.asarray(held * (1.0 - unseen), np.float64)


def remembered_bytes(problem: Problem, samples: Ints) -> Floats:
    """Return the bytes of one reconstruction of every sample seen in the run, at one end, (n,)."""
    each = SINGLE_BYTES * problem.workload.tokens * problem.shape.width
    return seen_samples(problem, samples) * each


def _remembers(assignments: Assignments) -> Floats:
    predicts = np.array([codec.predict for codec in assignments.codecs], np.float64)
    return predicts[assignments.codec_index]


def _payloads(problem: Problem, assignments: Assignments) -> tuple[Floats, Floats]:
    """Return the expected payloads of activation and of what the server returns, a step, (n,)."""
    lines = list(zip(assignments.cut.tolist(), assignments.codec_index.tolist(), strict=True))
    priced = {
        (cut, index): _line_payloads(problem, assignments.codecs[index], cut)
        for cut, index in set(lines)
    }
    up, down = (np.array([priced[line][way] for line in lines]) for way in (0, 1))
    return up, down


def _line_payloads(problem: Problem, codec: CodecSpec, cut: int) -> tuple[float, float]:
    """Return the expected payloads of one codec at one cut, a step."""
    elements, found = _crossing(problem), problem.measurements
    bits = None if found is None else found.codec_bits(cut, codec)
    if bits is None:
        up = float(payload_bytes(elements, codec, channels=problem.shape.width))
        down = _gradient_bytes(problem, codec, elements)
    else:
        up, down = (elements * each / BITS_PER_BYTE for each in bits)
    down = 0.0 if problem.work.device_frozen else down
    return up, down + (_one_head_payload(problem, codec) if problem.work.labels == "stay" else 0.0)


def _crossing(problem: Problem) -> float:
    """Return the numbers of a batch's tensor: at real tokens where their share was measured."""
    filled = 1.0 if problem.measurements is None else problem.measurements.filled
    return filled * problem.workload.batch * problem.workload.tokens * problem.shape.width


def _gradient_bytes(problem: Problem, codec: CodecSpec, elements: float) -> float:
    spec = problem.work.gradient or codec
    reuses = problem.work.reuse_mask and spec.kind == "topk" and codec.kind == "topk"
    if reuses:
        spec = replace(spec, keep=codec.keep)
    width = problem.shape.width
    return float(payload_bytes(elements, spec, channels=width, known_mask=reuses))


def _head_payloads(problem: Problem, assignments: Assignments) -> Floats:
    sizes = [_one_head_payload(problem, codec) for codec in assignments.codecs]
    return np.array(sizes)[assignments.codec_index]


def _one_head_payload(problem: Problem, codec: CodecSpec) -> float:
    """Return the bytes of the positions of a hidden state that the head reads, one way."""
    spec = problem.work.gradient or codec
    shape, workload = problem.shape, problem.workload
    is_one = shape.task == "classification"
    read = workload.batch * shape.width if is_one else _crossing(problem)
    return float(payload_bytes(read, spec, channels=shape.width))


def _beside(problem: Problem, assignments: Assignments, fresh: Floats) -> Floats:
    """Return the bytes of lengths and labels of new samples and of the numbers of all, (n,)."""
    shape, workload, work = problem.shape, problem.workload, problem.work
    tokens = _crossing(problem) / (workload.batch * shape.width)
    labels = 1.0 if shape.task == "classification" else tokens
    each = 1.0 + (0.0 if work.labels == "stay" else labels)
    numbered = np.maximum(_remembers(assignments), float(work.device_frozen))
    told = INTEGER_BYTES * workload.batch * (each * fresh + numbered) + STAMP_BYTES * numbered
    return np.asarray(told, np.float64)


def _exchanged(problem: Problem, assignments: Assignments, *, up: bool) -> Floats:
    """Return the bytes of the device part's adapters, and its head where labels stay, a round."""
    shape, workload, work = problem.shape, problem.workload, problem.work
    head = 0
    if workload.trains_head and work.labels == "stay":
        head = shape.trained_head_parameters
    groups = assignments.upload_groups(workload.upload)
    if not up:
        groups = ((workload.download, np.ones(len(assignments), np.bool_)),)
    held = 0.0 if work.device_frozen else 1.0
    found = np.zeros(len(assignments))
    for spec, rows in groups:
        scale = workload.upload_scale(spec) if up else workload.coded_scale.down
        adapters = adapter_bytes(shape, workload, assignments, spec, scale=scale)
        coded = scale * payload_bytes(head, spec) if head else 0.0
        extra = head * workload.adapter_bytes if spec.kind == "identity" else coded
        found = found + rows * (held * adapters + extra)
    return np.asarray(found, np.float64)


def _device_peak(problem: Problem, assignments: Assignments) -> Floats:
    """Return the peak of the device's part without what it remembers, (n,)."""
    shape, workload, work = problem.shape, problem.workload, problem.work
    memory = peak_memory(shape, workload, assignments)
    if work.device_frozen:
        passing = pass_bytes(shape, workload, assignments)
        peak = memory.weights + memory.adapters + passing
    else:
        peak = memory.total
    return peak + _head_held(shape, workload) if work.labels == "stay" else peak


def _head_held(shape: ModelShape, workload: Workload) -> float:
    """Return the bytes of a head that a device holds and trains; a tied one is its embedding."""
    trained = shape.trained_head_parameters if workload.trains_head else 0
    states = (2 + workload.optimiser_states) * trained * workload.adapter_bytes
    weight = (
        workload.base_bits / BITS_PER_BYTE if workload.base_bits >= 16 else workload.dtype_bytes
    )
    return shape.head_parameters * weight + states + head_work_bytes(shape, workload)


def _server_each(problem: Problem, assignments: Assignments) -> Floats:
    """Return what the server holds of each cut row's batch while it serves it, (n,)."""
    shape, workload = problem.shape, problem.workload
    saved = server_saved_bytes(shape, workload, assignments)
    if problem.work.labels == "stay":
        saved = saved - head_work_bytes(shape, workload)
    return saved + pass_bytes(shape, workload, assignments)


def _server_peak(
    problem: Problem, assignments: Assignments, served: Floats, remembered: Floats
) -> float:
    """Return the server's peak: its model once, adapters as often as it keeps them, all batches."""
    rows = np.flatnonzero(assignments.cut > 0)
    if not rows.size:
        return 0.0
    first = int(np.min(assignments.cut[rows]))
    together = np.max if problem.work.server == "sequential" else np.sum
    held = server_model_bytes(problem, first, devices=rows.size)
    return held + float(together(served[rows])) + float(np.sum(remembered))


def server_model_bytes(problem: Problem, cut: int, *, devices: int) -> float:
    """Return the bytes of the server's blocks and of their adapters in training.

    Args:
        problem: Model, workload and local work.
        cut: The earliest of the plan, from 1 on.
        devices: That are cut; each has adapters of its own where the server keeps copies.
    """
    shape, workload, work = problem.shape, problem.workload, problem.work
    one = np.ones(1, np.int64)
    whole = whole_model(one - 1, rank=workload.rank, local_steps=1, share=np.ones(1))
    held = replace(whole, cut=cut * one)
    weights = float(
        (
            held_bytes(shape, workload, kept(shape, whole))
            - held_bytes(shape, workload, kept(shape, held))
        )[0]
    )
    # a tied output layer is the embedding, which both sides hold
    tied = shape.task == "causal-lm" and shape.tied and work.labels == "travel"
    weights += shape.embedding_parameters * workload.dtype_bytes if tied else 0.0
    trained = float(
        (lora_parameters(shape, workload, whole) - lora_parameters(shape, workload, held))[0]
    )
    if workload.trains_head and work.labels == "travel":
        trained += shape.trained_head_parameters
    copies = devices if work.server == "copies" else 1
    states = (2 + workload.optimiser_states) * trained * workload.adapter_bytes * copies
    return weights + states
