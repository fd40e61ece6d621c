"""What a device reports so that the server knows which structures matter: once, before pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from airtune.errors import ModelError
from airtune.keys import generator
from airtune.model.base import BaseModel
from airtune.model.batch import Batch
from airtune.model.images import Examples, Images, image_tokens
from airtune.model.importance import Importance, measure
from airtune.model.mending import Grams, measure_grams, pooled_grams
from airtune.model.sensitivity import first_order
from airtune.plan import ImportanceKind, ModelShape, WorkSpec
from airtune.work.batches import collate_examples, draw_batches

MEASURED_BATCHES = 4
"""As in methods of this kind; more changes the ranking little."""
_LEAST_ROWS = 32
"""Rows on which second moments are measured, where a batch holds few: a model of 135M parameters that was
pruned and mended by 32 rows a device and then tuned had less loss than by 8."""


def measured_batches(work: WorkSpec, batch: int) -> int:
    """Return how many batches a device measures on, before anything is pruned.

    Args:
        work: the method's local work.
        batch: examples in a batch.

    >>> measured_batches(WorkSpec(), 2), measured_batches(WorkSpec(mend="least-squares"), 2)
    (4, 16)
    """
    rows = _LEAST_ROWS if work.mend == "least-squares" else 0
    return max(MEASURED_BATCHES, -(-rows // batch))


def measure_importance(
    base: BaseModel,
    sequences: Examples,
    *,
    criterion: ImportanceKind = "fluctuation",
    batch: int = 8,
    batches: int = MEASURED_BATCHES,
    seed: int = 0,
    device: int = 0,
) -> Importance:
    """Score the structures of the dense base on a device's own data.

    Args:
        base: the dense model, without adapters.
        sequences: the device's training data.
        criterion: what a structure's worth is. Those measured while training start from
            fluctuation, which needs no gradient.
        batch: examples in a batch.
        batches: that are drawn, fewer where the data end before.
        seed: of the run.
        device: whose draw it is.

    Returns:
        Scores and mean activations, to be pooled over devices by weight.

    Raises:
        DataError: if the device has no example.
    """
    drawn = calibration_batches(
        base, sequences, batch=batch, batches=batches, seed=seed, device=device
    )
    if criterion == "magnitude" or criterion == "random":
        return measure(base.network, base.shape, drawn, criterion=criterion, seed=seed)
    start = measure(base.network, base.shape, drawn)
    if criterion == "first-order":
        return replace(first_order(base, drawn), means=start.means)
    return start


def calibration_batches(
    base: BaseModel,
    sequences: Examples,
    *,
    batch: int = 8,
    batches: int = MEASURED_BATCHES,
    seed: int = 0,
    device: int = 0,
) -> list[Batch]:
    """Return up to so many batches of a device's own data, always the same ones.

    Raises:
        DataError: if the device has no example.
    """
    steps = min(batches, -(-len(sequences) // batch))
    drawn = draw_batches(
        len(sequences),
        steps=max(steps, 1),
        batch=min(batch, max(len(sequences), 1)),
        stream=generator(seed, "importance", device),
    )
    tokens = (
        image_tokens(base.network.config)
        if isinstance(sequences, Images)
        else max(map(len, sequences.tokens))
    )
    return [collate_examples(sequences, rows, tokens=tokens, device=base.device) for rows in drawn]


def measure_device_grams(
    base: BaseModel,
    held: Sequence[tuple[int, Examples, float]],
    *,
    batch: int = 8,
    batches: int = MEASURED_BATCHES,
    seed: int = 0,
) -> Grams:
    """Return second moments of the dense base's output projections, pooled over devices.

    Args:
        base: the dense model, without adapters.
        held: device, its training data, its weight.
        batch: examples in a batch.
        batches: of each device.
        seed: of the run.

    Raises:
        DataError: if a device has no example.
        ModelError: if there is no device, or what the layers read is not finite.
    """
    if not held:
        raise ModelError("a Gram matrix is measured on data and got no device; give at least one")
    reports = [
        measure_grams(
            base.network,
            base.shape,
            calibration_batches(
                base, sequences, batch=batch, batches=batches, seed=seed, device=device
            ),
        )
        for device, sequences, _ in held
    ]
    return pooled_grams(reports, [weight for _, _, weight in held])


def report_bytes(shape: ModelShape) -> float:
    """Return the most that a device sends to report importance: scores and all means."""
    columns = shape.kv_groups + 2 * shape.ffn + shape.heads * shape.head_dim
    return float(shape.blocks * columns * np.dtype(np.float32).itemsize)


def importance_bytes(importance: Importance) -> float:
    """Return what a device sends to report it: single-precision scores and means."""
    count = importance.groups.size + importance.channels.size
    if importance.means is not None:
        count += importance.means.attention.size + importance.means.ffn.size
    return float(count * np.dtype(np.float32).itemsize)
