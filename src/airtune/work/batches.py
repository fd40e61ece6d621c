"""Which examples a device trains on in a round, and how several devices share one batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from airtune.errors import DataError
from airtune.keys import generator
from airtune.model.batch import Batch, Sequences, collate
from airtune.model.images import Examples, Images, collate_images, join_images
from airtune.plan import Ints


def draw_batches(examples: int, *, steps: int, batch: int, stream: np.random.Generator) -> Ints:
    """Draw examples epoch by epoch: each is used once before any is used again.

    Args:
        examples: how many the device has, at least 1.
        steps: batches to draw.
        batch: examples in each; more than the device has is filled by further epochs.
        stream: where the randomness comes from.

    Returns:
        Indices, shape (steps, batch).

    Raises:
        DataError: if there is no example.

    >>> drawn = draw_batches(4, steps=2, batch=2, stream=np.random.default_rng(0))
    >>> sorted(drawn.ravel().tolist())
    [0, 1, 2, 3]
    """
    if examples < 1:
        raise DataError("a device needs at least one training example, got none")
    epochs = -(-steps * batch // examples)
    order = np.concatenate([stream.permutation(examples) for _ in range(epochs)])
    return np.asarray(order[: steps * batch].reshape(steps, batch), np.int64)


def round_batches(
    examples: int, *, steps: int, batch: int, seed: int, round: int, device: int
) -> Ints:
    """Return the batches of one device in one round; nothing else decides them."""
    stream = generator(seed, "batch", round, device)
    return draw_batches(examples, steps=steps, batch=batch, stream=stream)


def join(parts: Iterable[tuple[Sequences, Sequence[int] | Ints]]) -> Sequences:
    """Return chosen examples of several devices as one, in the order given."""
    tokens: list[Ints] = []
    labels: list[Ints] = []
    classes: list[int] = []
    segments: list[Ints] = []
    for sequences, indices in parts:
        for index in indices:
            tokens.append(sequences.tokens[int(index)])
            segments.extend(sequences.segments[int(index) : int(index) + 1])
            if isinstance(sequences.targets, np.ndarray):
                classes.append(int(sequences.targets[int(index)]))
            else:
                labels.append(sequences.targets[int(index)])
    targets = np.array(classes, np.int64) if classes else tuple(labels)
    return Sequences(tuple(tokens), targets, segments=tuple(segments))


def join_examples(parts: Iterable[tuple[Examples, Sequence[int] | Ints]]) -> Examples:
    """Return chosen examples of several devices as one, in the order given; texts or images.

    Raises:
        DataError: if some devices hold texts and others images.
    """
    images: list[Images] = []
    texts: list[tuple[Sequences, Sequence[int] | Ints]] = []
    for examples, rows in parts:
        if isinstance(examples, Images):
            images.append(examples.take(rows))
        else:
            texts.append((examples, rows))
    if images and texts:
        raise DataError("some devices hold texts and others images; a run has one kind of data")
    return join_images(images) if images else join(texts)


def collate_examples(
    examples: Examples, rows: Sequence[int] | Ints, *, tokens: int, device: torch.device
) -> Batch:
    """Return the chosen examples as a batch.

    Args:
        examples: texts or images.
        rows: which.
        tokens: most tokens of a text, which is padded to the longest chosen; of an image, all it is.
        device: where to.
    """
    if isinstance(examples, Images):
        return collate_images(examples, rows, tokens=tokens, device=device)
    longest = min(max((len(examples.tokens[int(row)]) for row in rows), default=1), tokens)
    return collate(examples, rows, padding=longest, device=device)


def lengths_of(examples: Examples, *, tokens: int) -> Ints:
    """Return the tokens of each example, at most `tokens`; an image is always all of them."""
    if isinstance(examples, Images):
        return np.full(len(examples), tokens, np.int64)
    return np.minimum([len(row) for row in examples.tokens], tokens).astype(np.int64)
