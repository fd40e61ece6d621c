"""Which devices are asked if `auto` asks a part of them: less often those for which others wait.

With w_i the data of the n devices that are there and c_i the price of each, the part of ln(K T) that
goes without it, asking device i with probability q_i and counting what it sends 1 / q_i times adds
about sum w_i^2 / q_i to the variance of a round, and a round costs about sum q_i (1 / n + c_i). Of all
with the same cost the least variance has

    q_i = min(1, max(floor, k w_i / sqrt(1 / n + c_i)))

with k such that the mean is what was asked for. So that no round is empty, the device that is cheapest
for its data is asked for certain; so is one that has no price yet.

Source: that devices are asked with probabilities chosen beside rank and bandwidth, and weighed by
their inverse, is from arXiv 2505.23555; the rule is reconstructed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from airtune.keys import generator
from airtune.plan import Bools, Floats, Ints, Problem

LEAST = 0.1
"""Floor of the probabilities: whoever is there is asked once in ten rounds."""
_HALVINGS = 60


def probabilities(weight: Floats, price: Floats, mean: float) -> Floats:
    """Return the probability with which each device is asked, shape (n,), each in [`LEAST`, 1].

    Args:
        weight: data of the devices that are there, in any unit, (n,).
        price: part of ln(K T) that goes without each, at least 0; NaN = not known, (n,).
        mean: of the probabilities, in (0, 1]; more where floor and certainty ask for it.

    >>> probabilities(np.array([2.0, 1.0, 1.0]), np.array([0.0, 0.0, 1.0]), 0.8).round(2).tolist()
    [1.0, 0.93, 0.47]
    """
    each = np.maximum(weight, 0.0) / np.sqrt(1.0 / len(weight) + np.nan_to_num(price))
    if not np.any(each > 0.0):
        return np.ones(len(weight))
    is_certain = ~np.isfinite(price)
    is_certain[np.argmax(each)] = True

    def at(k: float) -> Floats:
        return np.where(is_certain, 1.0, np.clip(k * each, LEAST, 1.0))

    low, high = 0.0, 1.0 / float(np.min(each[each > 0.0]))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if float(at(middle).mean()) >= mean else (middle, high)
    return at(high)


def asked(problem: Problem, round: int, available: Bools, probability: Floats) -> Bools:
    """Return who is asked in a round, shape (devices,); the same for the same seed and round.

    Args:
        problem: gives the seed.
        round: counted from 0.
        available: who is there, (devices,).
        probability: of each, (devices,).
    """
    draw = generator(problem.seed, "who is asked", round).random(len(available))
    return np.asarray(available & (draw < probability), np.bool_)


def not_asked(
    problem: Problem, device: Ints, probability: Floats, price: Floats
) -> Mapping[int, str]:
    """Return the line of reason of devices that are not asked in a round.

    Args:
        problem: gives their names.
        device: of them, (n,).
        probability: of all, (devices,).
        price: likewise.
    """
    names = problem.devices.names
    return {
        one: f"{names[one]}: not sampled this round; {rarely(probability[one], price[one])}"
        for one in device.tolist()
    }


def rarely(probability: float, price: float) -> str:
    """Return in words how rarely a device is asked, and why.

    >>> rarely(0.25, 0.12)
    'sampled in 25% of rounds with weight 4: without it a round would cost 12.0% less'
    """
    return (
        f"sampled in {probability:.0%} of rounds with weight {1.0 / probability:.3g}: without it a round "
        f"would cost {price:.1%} less"
    )
