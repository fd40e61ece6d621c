"""What loss curves say: how many rounds a run needs against another, and how much worse it ends.

    K = rounds needed / rounds the reference needs, to the same loss

read off by interpolation over the last quarter of the rounds, between 1 and 10. It grows with the
rounds (a run that lags does so more, the lower the loss already is), so a few devices over as many
rounds as the run will need measure it better than many devices over a few. Expected error: a guide
from one seed, good to tell "costs nearly nothing" from "costs twice the rounds".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WORST_RATIO = 10.0
"""Of rounds; what a run gets that makes next to no progress."""

Curve = Sequence[float]
"""Validation loss before the first round and after each."""


def rounds_needed(reference: Curve, curve: Curve) -> float:
    """Return K, the geometric mean over the last quarter of the rounds, in [1, 10].

    A reference that has stopped falling is timed by when it first was where it is.

    >>> round(rounds_needed((4.0, 3.0, 2.0, 1.0), (4.0, 3.5, 3.0, 2.5)), 6)
    2.0
    >>> rounds_needed((4.0, 3.0, 2.0, 2.1), (4.0, 3.0, 2.0, 2.1))
    1.0
    """
    rounds = np.arange(len(curve), dtype=np.float64)
    ours = np.minimum.accumulate(np.array(curve))
    best = np.minimum.accumulate(np.array(reference))
    later = rounds >= max(1.0, 0.75 * rounds[-1])
    # Interpolate rounds as a function of loss; a plateau counts from where it was first reached.
    falling = np.flatnonzero(np.diff(best, prepend=np.inf) < 0)
    needed, own = (
        np.interp(-curve[later], -best[falling], rounds[falling]) for curve in (ours, best)
    )
    ratios = np.clip(own / np.maximum(needed, 1e-9), 1.0, WORST_RATIO)
    return float(np.exp(np.mean(np.log(ratios))))


def log_rounds(reference: Curve, curve: Curve) -> float:
    """Return ln K, below 0 where the curve needs fewer rounds than the reference.

    >>> slow, fast = (4.0, 3.5, 3.0, 2.5), (4.0, 3.0, 2.0, 1.0)
    >>> round(log_rounds(fast, slow), 6), round(log_rounds(slow, fast), 6)
    (0.693147, -0.693147)
    """
    return float(np.log(rounds_needed(reference, curve)) - np.log(rounds_needed(curve, reference)))


def end_loss(reference: Curve, curve: Curve) -> float:
    """Return the relative increase of the last loss, at least 0.

    >>> end_loss((4.0, 2.0, 1.0), (4.0, 3.0, 1.5))
    0.5
    """
    return float(max(curve[-1] / reference[-1] - 1.0, 0.0))


def later_loss(reference: Curve, curve: Curve) -> float:
    """Return the relative increase of the mean loss over the later half of the rounds, at least 0.

    >>> round(later_loss((4.0, 2.0, 1.0), (4.0, 2.2, 1.1)), 6)
    0.1
    """
    table = np.array((curve, reference), np.float64)[:, _half(curve) :].mean(axis=1)
    return float(np.maximum(table[0] / table[1] - 1.0, 0.0))


def later_round(curve: Curve) -> float:
    """Return the mean round of that later half.

    >>> later_round((4.0, 2.0, 1.0)), later_round((4.0, 3.0, 2.0, 1.0, 0.5))
    (2.0, 3.5)
    """
    return float(np.mean(range(_half(curve), len(curve))))


def _half(curve: Curve) -> int:
    return 1 + (len(curve) - 1) // 2


def runs_away(reference: Curve, curve: Curve) -> bool:
    """Return whether a knob has cost more than training can make up for.

    >>> runs_away((4.0, 3.0, 2.0), (4.0, 3.5, 3.0)), runs_away((4.0, 3.0, 2.0), (4.0, 5.0, 4.5))
    (False, True)
    """
    has_learned = reference[-1] < reference[0]
    return has_learned and (curve[-1] >= curve[0] or rounds_needed(reference, curve) >= WORST_RATIO)
