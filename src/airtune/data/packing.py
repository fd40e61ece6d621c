"""Joining short texts, so that fewer positions of a batch are padding."""

from __future__ import annotations

import numpy as np

from airtune.model.batch import IGNORED, Sequences
from airtune.plan import Ints


def pack(sequences: Sequences, *, max_length: int) -> Sequences:
    """Join texts, in order, as long as they fit into `max_length` tokens; none is split.

    The first token of a text is never predicted from the text before it, so exactly the tokens
    that counted before count afterwards. Attention does reach back into the text before, as is
    usual with packing.

    >>> one, two = np.array([5, 6]), np.array([7, 8])
    >>> packed = pack(Sequences((one, two), (one, two)), max_length=4)
    >>> packed.tokens[0].tolist(), packed.targets[0].tolist()
    ([5, 6, 7, 8], [-100, 6, -100, 8])
    """
    groups: list[list[int]] = []
    room = 0
    for row, tokens in enumerate(sequences.tokens):
        if len(tokens) > room:
            groups.append([])
            room = max_length
        groups[-1].append(row)
        room -= len(tokens)
    targets = [_apart(np.asarray(row)) for row in sequences.targets]
    return Sequences(
        tuple(np.concatenate([sequences.tokens[row] for row in group]) for group in groups),
        tuple(np.concatenate([targets[row] for row in group]) for group in groups),
        truncated=sequences.truncated,
    )


def _apart(targets: Ints) -> Ints:
    copy = targets.copy()
    copy[:1] = IGNORED
    return copy
