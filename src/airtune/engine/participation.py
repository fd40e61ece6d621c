"""Who is asked in a round."""

from __future__ import annotations

import numpy as np

from airtune.engine.base import asked_of
from airtune.plan import Bools, Floats


def with_data(available: Bools, weight: Floats) -> Bools:
    """Return which of the available devices have rows to train on; all where weights say nothing."""
    return np.asarray(available & ((weight > 0.0) | ~np.any(weight > 0.0)), np.bool_)


def sampled(
    available: Bools, short: Bools, participation: float, stream: np.random.Generator
) -> Bools:
    """Return who takes part: a sample of those that are there, at least one of them.

    Those that were told too much for their month are sampled by themselves, at least one too: they
    may hold what they are told now, and take no place of those that do.

    Args:
        available: who is there, shape (devices,).
        short: who was last told more than its month's bytes hold, shape (devices,).
        participation: fraction that is asked, in (0, 1].
        stream: of this round.
    """
    if participation == 1.0:
        return available
    asked = np.zeros(available.shape, np.bool_)
    for there in map(np.flatnonzero, (available & ~short, available & short)):
        if len(there):
            count = asked_of(len(there), participation)
            asked[stream.choice(there, size=count, replace=False)] = True
    return asked
