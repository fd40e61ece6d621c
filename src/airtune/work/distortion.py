"""How far a codec's reconstruction is from a cut's activations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from airtune.errors import DataError
from airtune.keys import generator
from airtune.model.base import BaseModel
from airtune.model.cut import DeviceHalf
from airtune.model.images import Examples
from airtune.plan import CodecSpec, Floats
from airtune.work.batches import collate_examples
from airtune.work.wire import cross, packed


@torch.no_grad()
def measure_distortion(
    base: BaseModel, examples: Examples, *, cuts: Sequence[int], codecs: Sequence[CodecSpec],
    batch: int, tokens: int, seed: int,
) -> Floats:  # fmt: skip
    """Return relative mean squared errors `sum (x - x')^2 / sum x^2`, shape (cuts, codecs).

    Args:
        base: The frozen model.
        examples: What is sent through it.
        cuts: Blocks on the device.
        codecs: The menu.
        batch: Examples that are coded together, as in training.
        tokens: Most tokens of a text; of an image, all it is.
        seed: For stochastic rounding.

    Raises:
        DataError: if there is no example.
        ModelError: if a cut is outside the model.
    """
    if len(examples) == 0:
        raise DataError("distortion is measured on examples, got none")
    lost = np.zeros((len(cuts), len(codecs)))
    total = np.zeros(len(cuts))
    for place, cut in enumerate(cuts):
        half = DeviceHalf(base.network, base.family, [{}], cut=cut, scale=1.0)
        for start in range(0, len(examples), batch):
            rows = range(start, min(start + batch, len(examples)))
            given = collate_examples(examples, rows, tokens=tokens, device=base.device)
            sent = packed(half.forward(given), given.attention_mask)
            total[place] += np.square(sent, dtype=np.float64).sum()
            for number, codec in enumerate(codecs):
                stream = generator(seed, "distortion", cut, start, number)
                received = cross(sent, codec, stream).values
                lost[place, number] += np.square(sent - received, dtype=np.float64).sum()
    return np.asarray(lost / total[:, None], np.float64)
