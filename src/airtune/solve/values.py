"""What an arm is worth, learnt by all devices together: linear on a logarithmic scale.

    V(a, s) = exp( theta . x + explore sqrt(x' P^-1 x) ),   x = (ln s, ln r / r_max, ln w / w_now)

with s local steps, r the rank and w the width: three numbers for the fleet instead of a table a
device. What is observed is how far an update agrees with the others of its round (the part that
survives averaging):

    y_i = <d_i, mean of the others' d_j> = c exp(theta . x_i) + e_i,   sd(e_i) = q |d_i| rms |d_j|

The scale c of a round, which falls as training goes on, is profiled out: only differences between
arms teach. A round is one weighted Gauss-Newton step; old rounds fade at `discount` towards the prior
theta_0 = (1, .5, .25), which has the weight of 30 perfectly clear trials. Reconstructed; after linear
UCB (Li et al., arXiv 1003.0146).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.plan import Floats

PRIOR = np.array([1.0, 0.5, 0.25])
PRIOR_TRIALS = 30.0
_LARGEST = 1.5
"""Exponents stay in [0, this]: more steps, rank or width never make an update worth less."""


@dataclass(frozen=True, slots=True)
class Values:
    """What is known of the exponents."""

    theta: Floats
    """Shape (3,)."""
    precision: Floats
    """P, shape (3, 3)."""
    noise: float
    """q; 0 = nothing was observed yet."""


def begin_values() -> Values:
    """Return what is believed before the first round."""
    return Values(PRIOR.copy(), PRIOR_TRIALS * np.eye(3), 0.0)


def worth(values: Values, x: Floats, *, explore: float = 0.0) -> Floats:
    """Return what arms are worth against one step at full rank and width.

    Args:
        values: what is known.
        x: of each arm, shape (..., 3).
        explore: scale of the confidence bound.
    """
    spread = np.einsum("...i,ij,...j->...", x, np.linalg.inv(values.precision), x)
    return np.asarray(np.exp(x @ values.theta + explore * np.sqrt(np.maximum(spread, 0.0))))


def learn_values(
    values: Values, x: Floats, agreement: Floats, noise: Floats, *, discount: float
) -> Values:
    """Return what is known after a round.

    Args:
        values: before it.
        x: of the n devices that answered, shape (n, 3).
        agreement: y, shape (n,).
        noise: |d_i| rms |d_j|, shape (n,).
        discount: what a round counts a round later, in (0, 1].
    """
    prior = PRIOR_TRIALS * np.eye(3)
    faded = discount * values.precision + (1.0 - discount) * prior
    pull = (1.0 - discount) * prior @ (PRIOR - values.theta)
    usable = np.isfinite(agreement) & np.isfinite(noise) & (noise > 0.0)
    x, y, sd = x[usable], agreement[usable], noise[usable]
    quality, precision = values.noise, faded
    if y.size >= 2:
        shape = np.exp(x @ values.theta)
        weight = shape**2 / sd**2
        scale = float(np.sum(y * shape / sd**2) / np.sum(weight))
        quality = _noise(values.noise, (y - scale * shape) / sd)
        if scale > 0.0 and quality > 0.0:
            slope = scale * shape[:, None] * (x - (weight @ x) / weight.sum())
            clear = slope / (quality * sd)[:, None]
            precision = faded + clear.T @ clear
            pull = pull + clear.T @ ((y - scale * shape) / (quality * sd))
    theta = np.clip(values.theta + np.linalg.solve(precision, pull), 0.0, _LARGEST)
    return Values(theta, precision, quality)


def _noise(before: float, residual: Floats) -> float:
    """Return q after a round's residuals over their scale, which have mean square q^2."""
    fresh = float(np.mean(residual**2)) * len(residual) / max(len(residual) - 1, 1)
    return float(np.sqrt(fresh if before == 0.0 else 0.9 * before**2 + 0.1 * fresh))
