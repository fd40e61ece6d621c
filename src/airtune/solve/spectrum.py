"""Spectrum of a slot: who gets how much of a link, by quadratic steps as published or exactly.

    minimise max_i (fixed_i + bits_i / R_i(z_i))   subject to   sum of z on each shared link <= budget

`divide_min_max` solves it exactly; `equal` splits links evenly. `sqp` takes sequential quadratic
steps on `minimise T  with  fixed_i + bits_i / R_i(z_i) <= T`: at each iterate the constraints are
linearised and the Lagrangian's curvature, which is diagonal, is kept; the step is damped until the
slowest device improves. It starts at equal shares and stops when a step gains nothing.

Source: sequential quadratic programming on the small timescale of Split Fine-Tuning for Large
Language Models in Wireless Networks (arXiv 2501.09237); reconstructed.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from airtune.plan import Floats
from airtune.solve.bandwidth import Division, divide_min_max
from airtune.solve.rates import Curves

Spectrum = Literal["exact", "sqp", "equal"]

_MOST_STEPS = 30
_GAIN = 1e-10
_BISECTIONS = 60
_SHORTEST = 1e-6


def divide_spectrum(
    curves: Curves, fixed_s: Floats, bits: Floats, how: Spectrum = "exact"
) -> Division:
    """Divide every shared link by one of the three rules.

    Args:
        curves: Rate curves of n devices.
        fixed_s: Time before the upload, shape (n,).
        bits: Payload, positive, shape (n,).
        how: The rule.

    Returns:
        The division; its bound is certified only for `exact`, NaN for the others.

    Raises:
        InfeasibleError: if a payload or a fixed time is not a finite positive number.
    """
    if how == "exact":
        return divide_min_max(curves, fixed_s, bits)
    share, steps = curves.equal_shares(), 0
    if how == "sqp":
        for link in np.unique(curves.link[~curves.dedicated]):
            rows = np.flatnonzero((curves.link == link) & ~curves.dedicated)
            share[rows], taken = _descend(curves.take(rows), fixed_s[rows], bits[rows], link)
            steps = max(steps, taken)
    finish = fixed_s + bits / curves.rate(share)
    shared = ~curves.dedicated
    load = curves.load(share)[np.unique(curves.link[shared])] if shared.any() else np.zeros(0)
    budget = curves.budget[np.unique(curves.link[shared])] if shared.any() else np.ones(0)
    return Division(
        share=share,
        finish_s=finish,
        round_s=float(np.max(finish)),
        bound_s=float("nan"),
        status="heuristic",
        iterations=steps,
        residual=max(float(np.max(load / budget - 1.0, initial=0.0)), 0.0),
    )


def _descend(curves: Curves, fixed_s: Floats, bits: Floats, link: int) -> tuple[Floats, int]:
    """Return shares of one link's devices after quadratic steps, and how many were taken."""
    budget = float(curves.budget[link])
    share = np.full(bits.shape, budget / bits.size)
    weight = np.full(bits.shape, 1.0 / bits.size)
    for step in range(_MOST_STEPS):
        finish, slope, bend = _derivatives(curves, fixed_s, bits, share)
        change, weight = _quadratic(finish, slope, np.maximum(weight, 1e-6 / bits.size) * bend)
        before, length = float(np.max(finish)), 1.0
        while length > _SHORTEST:
            # a linearised rate may ask for more than a device has
            trial = np.maximum(share + length * change, 0.2 * share)
            trial *= budget / float(np.sum(trial))
            after = float(np.max(fixed_s + bits / curves.rate(trial)))
            if after < before:
                break
            length *= 0.5
        if length <= _SHORTEST or after > before * (1.0 - _GAIN):
            return share, step
        share = trial
    return share, _MOST_STEPS


def _derivatives(
    curves: Curves, fixed_s: Floats, bits: Floats, share: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return finish times, what they fall by a unit of share, and their second derivatives."""
    rate, rise = curves.rate(share), curves.slope(share)
    step = 1e-4 * share
    fall = bits * rise / rate**2
    later = bits * curves.slope(share + step) / curves.rate(share + step) ** 2
    return fixed_s + bits / rate, fall, np.maximum((fall - later) / step, 1e-12 * fall / share)


def _quadratic(finish: Floats, fall: Floats, bend: Floats) -> tuple[Floats, Floats]:
    """Solve `min t + sum bend d^2 / 2` with `finish - fall d <= t` and `sum d = 0`.

    By the optimality conditions `d = max((finish - t) / fall, -nu / bend)`, where the multipliers
    `(bend d + nu) / fall` sum to 1: one bisection on t around one on nu.
    """
    # at the lowest t everybody would need more than there is
    low, high = float(np.sum(finish / fall) / np.sum(1.0 / fall)), float(np.max(finish))
    change, weight = np.zeros(finish.shape), np.full(finish.shape, 1.0 / finish.size)
    for _ in range(_BISECTIONS):
        t = 0.5 * (low + high)
        need = (finish - t) / fall
        nu = _balance(need, bend)
        change = np.maximum(need, -nu / bend)
        weight = np.maximum((bend * change + nu) / fall, 0.0)
        if float(np.sum(weight)) > 1.0:
            low = t
        else:
            high = t
    total = float(np.sum(weight))
    return change - np.mean(change), weight / total if total > 0.0 else np.full_like(weight, 1.0)


def _balance(need: Floats, bend: Floats) -> float:
    """Return the nu at which `sum max(need, -nu / bend)` is zero; the sum of needs is below it."""
    edge = -need * bend
    order: NDArray[np.int64] = np.argsort(edge)
    # a device holds its need where nu is above its edge, and gives nu / bend below it
    held = np.concatenate([[0.0], np.cumsum(need[order])[:-1]])
    given = np.cumsum((1.0 / bend[order])[::-1])[::-1]
    nu = held / given
    fits = np.flatnonzero(nu <= edge[order])
    return float(max(nu[fits[0]], 0.0)) if fits.size else float(edge[order[-1]])
