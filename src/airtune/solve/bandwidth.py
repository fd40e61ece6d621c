"""Min-max division of links: shares that let the slowest device finish as soon as possible.

    minimise max_i (fixed_i + bits_i / R_i(z_i))   subject to   sum of z on each shared link <= budget

For a common finish time T device i needs `z_i(T) = R_i^{-1}(bits_i / (T - fixed_i))`, a convex
falling function of T; the least T at which a link's shares sum to its budget is its optimum, and
links separate. Newton's method runs on all links at once, on the reciprocal of the sum, which is
nearly linear in T. A tangent to the convex sum bounds the optimum from below: that is the
certificate. The unknown is not T but the time after the last `fixed_i` of the link: where computing
takes hours and sending milliseconds, T itself has too few digits to divide the link by.

Source: the bandwidth block of joint pruning and bandwidth allocation (arXiv 2602.01024; equations
reconstructed), generalised to several links, air time and dedicated links.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from airtune.errors import InfeasibleError
from airtune.plan import Floats
from airtune.solve.rates import Curves

SolveStatus = Literal["optimal", "stalled", "heuristic", "infeasible"]

_MOST_STEPS = 60
_TOLERANCE = 1e-10
_LAST_DIGITS = 4e-15
_OPTIMAL_GAP = 1e-8


@dataclass(frozen=True, slots=True)
class Division:
    """Shares of every link and when each device finishes."""

    share: Floats
    """Shape (n,); on each shared link they sum to its budget."""
    finish_s: Floats
    """Shape (n,)."""
    round_s: float
    bound_s: float
    """No division finishes sooner: certified by convexity."""
    status: SolveStatus
    iterations: int
    residual: float
    """Largest excess of a link's shares over its budget, relative."""

    @property
    def gap(self) -> float:
        """Relative distance of `round_s` from the certified bound."""
        return self.round_s / self.bound_s - 1.0 if self.bound_s > 0.0 else 0.0


def divide_min_max(
    curves: Curves, fixed_s: Floats, bits: Floats, *, tolerance: float = _TOLERANCE
) -> Division:
    """Divide every shared link so that its slowest device finishes as soon as possible.

    Each link gets its own optimum: devices on a link that is not the bottleneck finish sooner.

    Args:
        curves: rate curves of n devices.
        fixed_s: time before the upload starts, in seconds, shape (n,).
        bits: payload to upload, in bit, positive, shape (n,).
        tolerance: how exactly the shares asked for must sum to the budget before they are scaled.

    Returns:
        The division; at the default tolerance `gap` is at most about 1e-9.

    Raises:
        InfeasibleError: if a payload or a fixed time is not a finite positive number.

    >>> one = np.ones(2)
    >>> air = Curves(np.zeros(2, int), one < 0, one, one * np.inf, one * 8e6, one[:1])
    >>> divide_min_max(air, np.zeros(2), np.array([2e6, 6e6])).share.round(6).tolist()
    [0.25, 0.75]
    """
    _check(fixed_s, bits)
    links, shared = curves.budget.shape[0], np.flatnonzero(~curves.dedicated)
    least_s = bits / curves.rate(curves.most())
    share = np.ones(len(curves))
    bound_s, steps, excess = np.zeros(links), 0, 0.0
    if shared.size:
        part = curves.take(shared)
        last_s = np.zeros(links)
        np.maximum.at(last_s, part.link, fixed_s[shared])
        early_s = last_s[part.link] - fixed_s[shared]
        after, bound_s, steps = _search(part, (early_s, bits[shared], least_s[shared]), tolerance)
        bound_s = last_s + bound_s
        need = part.share_for(bits[shared] / (early_s + after[part.link]))
        load = part.load(need)
        # Handing out what is left, or taking back the last digit, keeps the sum exact.
        need *= (part.budget / np.where(load > 0.0, load, 1.0))[part.link]
        share[shared] = need
        excess = float(np.max(part.load(need) / part.budget - 1.0))
    finish_s = fixed_s + bits / curves.rate(share)
    alone_s = float(np.max(finish_s[curves.dedicated], initial=0.0))
    bound = max(alone_s, float(np.max(bound_s)))
    round_s = float(np.max(finish_s))
    return Division(
        share=share,
        finish_s=finish_s,
        round_s=round_s,
        bound_s=bound,
        status="optimal" if round_s <= bound * (1.0 + _OPTIMAL_GAP) else "stalled",
        iterations=steps,
        residual=max(excess, 0.0),
    )


def _check(fixed_s: Floats, bits: Floats) -> None:
    wrong = ~(np.isfinite(fixed_s) & np.isfinite(bits) & (bits > 0.0) & (fixed_s >= 0.0))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InfeasibleError(
            f"device {row} of the division has a payload of {bits[row]:g} bit after "
            f"{fixed_s[row]:g} s; both must be finite, the payload positive"
        )


def _search(
    curves: Curves, load: tuple[Floats, Floats, Floats], tolerance: float
) -> tuple[Floats, Floats, int]:
    """Return (finish, certified lower bound) of every link, shape (links,), and the steps.

    Both are in seconds after the link's last `fixed_s`; `load` holds how long before it each device
    begins to send, its payload, and how long it sends with the whole link.
    """
    early_s, bits, least_s = load
    link, budget, links = curves.link, curves.budget, curves.budget.shape[0]
    used = np.bincount(link, minlength=links) > 0
    low = np.zeros(links)
    np.maximum.at(low, link, least_s - early_s)
    high = np.zeros(links)
    np.maximum.at(high, link, bits / curves.rate(curves.equal_shares()) - early_s)
    bound, finish = low.copy(), low.copy()
    open_links = used & (high > low * (1.0 + tolerance))
    steps = 0
    while open_links.any() and steps < _MOST_STEPS:
        steps += 1
        total, slope = _load(curves, early_s, bits, finish)
        with np.errstate(invalid="ignore", divide="ignore"):
            over = total - budget
            tangent = finish - over / slope
            reciprocal = finish - over * total / (budget * slope)
        bound = np.where(open_links, np.maximum(bound, np.minimum(tangent, high)), bound)
        low = np.where(over > 0.0, np.maximum(low, finish), low)
        high = np.where(over <= 0.0, np.minimum(high, finish), high)
        low = np.maximum(low, np.where(open_links, bound, low))
        settled = (np.abs(over) <= budget * tolerance) | (high <= low * (1.0 + _LAST_DIGITS))
        inside = np.isfinite(reciprocal) & (reciprocal < high)
        # Left of the tangent's root there is nothing: that root itself is the better guess.
        fresh = np.where(inside, np.maximum(reciprocal, low), 0.5 * (low + high))
        # Next to a weak signal's limit the load is so steep that T runs out of digits first.
        open_links &= ~(settled | (np.abs(fresh - finish) <= _LAST_DIGITS * finish))
        finish = np.where(open_links, fresh, finish)
    return np.where(used, finish, 1.0), bound, steps


def _load(curves: Curves, early_s: Floats, bits: Floats, finish: Floats) -> tuple[Floats, Floats]:
    """Return the sum of shares each link needs for its finish time, and its derivative."""
    left_s = early_s + finish[curves.link]
    rate = bits / left_s
    share = curves.share_for(rate)
    change = -rate / left_s / curves.slope(share)
    return curves.load(share), curves.load(change)
