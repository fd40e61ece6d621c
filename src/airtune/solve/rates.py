"""Rate of an uplink as a function of the share of the link, its slope and its exact inverse.

Everything is in shares, so radio links and links of measured capacity are one formula:

    R(z) = min(cap z, scale z log2(1 + signal / z)),    z in [0, 1] the device's share of its link.

On a radio link of B hertz `signal = p g / (N0 B)`; where the capacity C is measured, the air time is
shared, `cap = C` and the second branch never binds (`scale = inf`). R is concave with R(0) = 0.

Source: the inverse by the lower branch of Lambert's W is the standard form of the bandwidth step in
wireless federated learning; the capped branch and the series for weak signals are this project's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from airtune.errors import InfeasibleError
from airtune.plan import Bools, Floats, Ints, LinkState

LN2 = float(np.log(2.0))
_WEAK_SIGNAL = 1e-3
"""Below this signal-to-noise ratio `ln(1+u) - u/(1+u)` loses half its digits: use the series."""
BLOCK = 8192
"""Devices worked on at a time, so that every intermediate column stays in the processor's cache."""
_HALLEY_STEPS = 3
_POLISH_ABOVE = 0.85
_SERIES_BELOW = 1e-3


@dataclass(frozen=True, slots=True)
class Curves:
    """Rate curves of n devices on several links, in columns of shape (n,).

    On a dedicated link a device always has all of it: its share is 1 and counts for nothing.
    """

    link: Ints
    """Index of the device's link into `budget`."""
    dedicated: Bools
    signal: Floats
    """Share of the link at which the signal-to-noise ratio is one; finite and positive."""
    scale: Floats
    """Bit/s of the whole link per unit of log2; inf where only the cap counts."""
    cap: Floats
    """Bit/s of the whole link that no signal exceeds; inf for Shannon's law alone."""
    budget: Floats
    """Shape (links,): the sum of shares that may be handed out, 1 unless some is reserved."""

    def __len__(self) -> int:
        return int(self.link.shape[0])

    def take(self, index: Ints | slice) -> Curves:
        """Return the curves of some devices, in the order given; repeats are allowed."""
        return Curves(
            self.link[index],
            self.dedicated[index],
            self.signal[index],
            self.scale[index],
            self.cap[index],
            self.budget,
        )

    def equal_shares(self) -> Floats:
        """Return the budget of each link split evenly among its devices; 1 where dedicated."""
        crowd = self.load(np.ones(len(self)))
        even = self.budget / np.maximum(crowd, 1.0)
        return np.where(self.dedicated, 1.0, even[self.link])

    def load(self, shares: Floats) -> Floats:
        """Return the sum of shares on each link, shape (links,); dedicated links count zero."""
        if self.budget.shape[0] == 1 and not self.dedicated.any():
            return np.array([shares.sum()])
        counted = np.where(self.dedicated, 0.0, shares)
        load = np.bincount(self.link, counted, minlength=self.budget.shape[0])
        return load.astype(np.float64)

    def most(self) -> Floats:
        """Return the largest share a device could get: its link's budget, 1 where dedicated."""
        return np.where(self.dedicated, 1.0, self.budget[self.link])

    def rate(self, shares: Floats) -> Floats:
        """Return the rate in bit/s at these shares, shape (n,)."""
        safe = np.maximum(shares, 1e-300)
        shannon = self.scale * safe * np.log1p(self.signal / safe) / LN2
        return np.where(shares > 0.0, np.minimum(self.cap * safe, shannon), 0.0)

    def slope(self, shares: Floats) -> Floats:
        """Return the derivative of the rate, in bit/s per unit of share; the right one at a kink."""
        ratio = self.signal / shares
        with np.errstate(invalid="ignore"):
            shannon = self.scale * log_slope(ratio) / LN2
        if not np.isfinite(self.cap).any():
            return shannon
        return np.where(shares < self.kink(), self.cap, shannon)

    def kink(self) -> Floats:
        """Return the share up to which the cap binds, shape (n,): 0 without cap, inf without signal."""
        with np.errstate(divide="ignore", over="ignore"):
            return self.signal / np.expm1(self.cap / self.scale * LN2)

    def share_for(self, rate: Floats) -> Floats:
        """Return the least share that gives this rate, inf where no bandwidth would, shape (n,).

        >>> one = np.ones(1)
        >>> air = Curves(np.zeros(1, int), one < 0, one, one * np.inf, one * 8e6, one)
        >>> float(air.share_for(np.array([2e6]))[0])
        0.25
        """
        has_air = ~np.isfinite(self.scale)
        if has_air.any():
            share = rate / self.cap
            rows = np.flatnonzero(~has_air)
            if rows.size:
                share[rows] = self.take(rows).share_for(rate[rows])
            return share
        fraction = rate * (LN2 / (self.scale * self.signal))
        with np.errstate(divide="ignore"):
            shannon = self.signal / signal_ratio(fraction)
        return np.maximum(shannon, rate / self.cap)


def slowed(curves: Curves, factor: Floats) -> Curves:
    """Return uplinks on which everything takes so many times as long, shape (n,)."""
    return replace(curves, scale=curves.scale / factor, cap=curves.cap / factor)


def signal_ratio(fraction: Floats) -> Floats:
    """Solve `ln(1 + u) / u = k` for u > 0.

    With `w - ln w = k - ln k` and w > 1, that is `w = -W_{-1}(-k exp(-k))`, the answer is
    `u = w / k - 1`. Halley's method on the logarithmic form, from the expansion about the branch
    point, reaches machine precision in three steps; near k = 1 one more step on u itself restores
    the digits that `w / k - 1` cancels.

    Args:
        fraction: k, the rate over its limit at infinite bandwidth, shape (n,).

    Returns:
        u, shape (n,); inf for k <= 0 (no rate is asked) and 0 for k >= 1 (out of reach).

    Source:
        Corless et al., "On the Lambert W function", 1996, section 4 for the expansion.

    >>> float(np.round(signal_ratio(np.array([np.log(2.0)]))[0], 12))
    1.0
    """
    u = np.empty_like(fraction)
    for start in range(0, fraction.shape[0], BLOCK):
        u[start : start + BLOCK] = _signal_ratio(fraction[start : start + BLOCK])
    return u


def _signal_ratio(fraction: Floats) -> Floats:
    inside = (fraction > 0.0) & (fraction < 1.0)
    all_inside = bool(inside.all())
    k = fraction if all_inside else np.where(inside, fraction, 0.5)
    excess = k - np.log(k) - 1.0
    w = 1.0 + np.sqrt(2.0 * np.maximum(excess, 0.0)) + excess * (2.0 / 3.0)
    for _ in range(_HALLEY_STEPS):
        error = w - np.log(w) - 1.0 - excess
        above = w - 1.0
        w -= 2.0 * error * w * above / np.maximum(2.0 * above * above - error, 1e-300)
    u = w / k - 1.0
    near = np.flatnonzero(k > _POLISH_ABOVE)
    if near.size:
        u[near] = _polish(k[near], u[near])
    if all_inside:
        return u
    return np.where(inside, u, np.where(fraction <= 0.0, np.inf, 0.0))


def _polish(k: Floats, u: Floats) -> Floats:
    """Restore the digits of u near k = 1 by a step of Newton's method on u itself.

    It starts from the expansion in `1 - k` where that is exact to nine digits, else from u.
    """
    short = 1.0 - k
    series = short * (2.0 + short * (8.0 / 3.0 + short * (28.0 / 9.0)))
    u = np.where(short < _SERIES_BELOW, series, u)
    u -= (np.log1p(u) - k * u) / (1.0 / (1.0 + u) - k - 1e-300)
    return np.maximum(u, 1e-300)


def log_slope(u: Floats, log_1u: Floats | None = None) -> Floats:
    """Return `ln(1 + u) - u / (1 + u)`, exact to 12 digits for weak signals too.

    Args:
        u: signal-to-noise ratio, positive.
        log_1u: `ln(1 + u)` where the caller has it already.
    """
    value = (np.log(1.0 + u) if log_1u is None else log_1u) - u / (1.0 + u)
    weak = u < _WEAK_SIGNAL
    if weak.any():
        v = u[weak]
        # The first omitted term is 5 v^4 / 6 relative to 1/2: below 2e-12 at v = 1e-3.
        value[weak] = v * v * (0.5 + v * (-2.0 / 3.0 + v * (0.75 - 0.8 * v)))
    return value


def curves_of(links: LinkState, device: Ints) -> Curves:
    """Return the rate curves of some devices of a link state.

    Args:
        links: the state of all links in this slot, columns over the whole fleet.
        device: indices into the fleet, shape (n,).

    Raises:
        InfeasibleError: if a device has no uplink at all in this slot; see `silent`.
    """
    dead = silent(links, device)
    if dead.any():
        index = int(device[np.flatnonzero(dead)[0]])
        raise InfeasibleError(
            f"device {index} has an uplink of 0 bit/s in this slot; leave it out of the division"
        )
    link = links.link[device]
    hertz = links.bandwidth_hz("up", device)
    usable = np.array([spec.rate.usable for spec in links.specs])[link]
    efficiency = np.array([spec.rate.efficiency for spec in links.specs])[link]
    cap = np.array([spec.rate.cap_bits_per_s_hz for spec in links.specs])[link]
    measured = np.isfinite(links.up_capacity_bps[device])
    safe_hertz = np.where(measured, 1.0, hertz)
    factor = links.factor("up", device)
    return Curves(
        link=link,
        dedicated=links.dedicated(device),
        signal=np.where(measured, 1.0, links.up_signal_hz[device] / safe_hertz),
        scale=factor * np.where(measured, np.inf, usable * efficiency * safe_hertz),
        cap=factor * np.where(measured, links.up_capacity_bps[device], usable * cap * safe_hertz),
        budget=np.ones(len(links.specs)),
    )


def silent(links: LinkState, device: Ints) -> Bools:
    """Return which of these devices cannot send at all in this slot: an outage, shape (n,)."""
    capacity, signal = links.up_capacity_bps[device], links.up_signal_hz[device]
    return ~np.where(np.isfinite(capacity), capacity > 0.0, signal > 0.0)
