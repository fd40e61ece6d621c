"""What codecs do to the tensors that cross a cut: how far they move them, and in how many bits.

The untuned model is run through every cut; its activations, and the gradients that come back to them,
are coded as in training. Real tensors are far from normal ones: a formula for these is up to several
times off, so plans price what was measured here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from airtune.errors import DataError, TrainingError
from airtune.keys import generator
from airtune.model.base import BaseModel
from airtune.model.cut import Arrived, DeviceHalf, ServerHalf
from airtune.model.images import Examples
from airtune.plan import CodecSpec, Floats, Ints, Workload, WorkSpec
from airtune.units import BITS_PER_BYTE
from airtune.work.batches import collate_examples
from airtune.work.wire import Values, cross, packed


def measure_crossing(
    base: BaseModel,
    examples: Examples,
    *,
    cuts: Sequence[int],
    codecs: Sequence[CodecSpec],
    workload: Workload,
    work: WorkSpec,
    seed: int,
) -> tuple[Floats, Floats, Floats]:
    """Code activations and gradients of the untuned model at every cut with every codec.

    Args:
        base: The frozen model.
        examples: What is sent through it.
        cuts: Blocks on the device.
        codecs: The menu.
        workload: `batch` examples are coded together, as in training, of at most `tokens` each.
        work: `gradient` and `reuse_mask` are read.
        seed: For stochastic rounding.

    Returns:
        Of shape (cuts, codecs): relative mean squared errors of the activations, `sum (x - x')^2 /
        sum x^2`; bits an entry of their payloads, and of the gradients'.

    Raises:
        DataError: if there is no example.
        ModelError: if a cut is outside the model.
        TrainingError: if the model's loss is not finite.
    """
    if len(examples) == 0:
        raise DataError("codecs are measured on examples, got none")
    shape = len(cuts), len(codecs)
    lost, energy = np.zeros(shape), np.zeros((len(cuts), 1))
    up, down = np.zeros(shape), np.zeros(shape)
    # neighbours in a file are often alike, and batches are drawn
    order = generator(seed, "crossing").permutation(len(examples))
    for index, cut in enumerate(cuts):
        rows = 0
        for start, sent, gradient in _tensors(base, examples, workload, cut, order):
            rows += len(sent)
            energy[index] += np.square(sent, dtype=np.float64).sum()
            for number, codec in enumerate(codecs):
                there = cross(sent, codec, generator(seed, "distortion", cut, start, number))
                lost[index, number] += np.square(sent - there.values, dtype=np.float64).sum()
                up[index, number] += there.payload_bytes
                back = cross(
                    gradient,
                    work.gradient or codec,
                    generator(seed, "returned", cut, start, number),
                    kept=there.kept if work.reuse_mask else None,
                )
                down[index, number] += back.payload_bytes
    each = BITS_PER_BYTE / (rows * base.shape.width)
    return lost / energy, each * up, each * down


def _tensors(
    base: BaseModel, examples: Examples, workload: Workload, cut: int, order: Ints
) -> Iterator[tuple[int, Values, Values]]:
    """Yield, of each batch, its number of examples before, activation and gradient at real tokens."""
    device = DeviceHalf(base.network, base.family, [{}], cut=cut, scale=1.0)
    server = ServerHalf(base.network, base.family, {}, first=cut, scale=1.0)
    for start in range(0, len(examples), workload.batch):
        given = order[np.arange(start, start + workload.batch) % len(order)]
        batch = collate_examples(examples, given, tokens=workload.tokens, device=base.device)
        activation, mask = device.forward(batch), batch.attention_mask
        arrived = Arrived(0, cut, activation, mask, batch.labels)
        returned = server.step([arrived], chunk=workload.loss_chunk).gradients[0]
        if returned is None:
            raise TrainingError("the untuned model's loss is not finite; check its weights")
        yield start, packed(activation, mask), packed(returned, mask)
