"""Whole and cut devices in one round: menus of lines, and the exact time of a choice.

Every device picks one line of its menu. A *whole* line trains the model on the device and sends one
update; a *cut* line sends an activation every step and receives a gradient. With n local steps

    whole:  f_i + b_i / R_i(z_i)                                           <= T
    cut:    f_i + u_i / R_i(z_i)                                           <= A
            q_i + f_i + g_i + d_i + (u_i + a_i) / R_i(z_i)                 <= X
            g_i (+ d_i on a link of its own) + sum of d on its shared link <= B
            X + (n - 1) (A + B) + n sum of server seconds                  <= T
    sum of shares z on each shared link <= its budget, sum of server bytes <= the server's memory

A choice is worth `ln K + ln T`: K is the number of rounds it needs relative to dense, whole training
at full rank. K has one part from the weighted mean pruning and one from each device's line.

Source: this project's; the whole lines alone are the problem of arXiv 2602.01024, the cut lines
alone that of arXiv 2501.09237 (both reconstructed).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from airtune.errors import InfeasibleError
from airtune.plan import Bools, Floats, Ints
from airtune.solve.rates import Curves

_TOLERANCE = 1e-9
_ENDLESS_BPS = 1e200


@dataclass(frozen=True, slots=True)
class MixedProblem:
    """Menus of n devices with k lines each; tables have shape (n, k).

    Raises:
        InfeasibleError: if a device has no line; the message names it.
    """

    curves: Curves
    """Uplinks, shape (n,)."""
    steps: int
    """Local steps of a round, at least 1."""
    whole: Bools
    fixed_s: Floats
    """Whole: seconds before the upload. Cut: forward seconds of a step."""
    bits: Floats
    """Whole: the update. Cut: the activation of a step. Positive."""
    backward_s: Floats
    """Cut: backward seconds of a step; 0 in whole lines, as are the other columns of cuts."""
    down_s: Floats
    """Cut: seconds of a gradient with the whole downlink."""
    server_s: Floats
    """Cut: seconds of the server for this device in a step."""
    adapter_bits: Floats
    """Cut: the update of the device's part, once a round."""
    fetch_s: Floats
    """Cut: seconds to receive the adapters, once a round."""
    server_bytes: Floats
    """Cut: memory of the server for this device."""
    pruned: Floats
    """Pruned fraction."""
    log_rounds: Floats
    """ln of the rounds needed, of a fleet that only had such lines, without pruning's part."""
    weight: Floats
    """Share of the data, shape (n,), summing to 1."""
    allowed: Bools
    prune_grid: Floats
    """Weighted mean pruned fractions, rising from 0."""
    prune_log_rounds: Floats
    """ln of the rounds at `prune_grid`: 0 first, convex."""
    server_memory_bytes: float = float("inf")
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        none = np.flatnonzero(~self.allowed.any(axis=1))
        if none.size:
            name = self.names[none[0]] if self.names else str(none[0])
            raise InfeasibleError(
                f"device {name} has no line: its memory holds neither the model nor a part of it"
            )

    def __len__(self) -> int:
        return len(self.curves)

    def of(self, table: Floats, index: Ints) -> Floats:
        """Return a table's entries of chosen lines, shape (n,)."""
        return np.asarray(table[np.arange(len(self)), index], np.float64)

    def log_pruning(self, mean_pruned: float) -> float:
        """Return pruning's part of ln K; beyond the grid the last slope goes on."""
        grid, value = self.prune_grid, self.prune_log_rounds
        if mean_pruned <= grid[-1] or grid.shape[0] < 2:
            return float(np.interp(mean_pruned, grid, value))
        slope = (value[-1] - value[-2]) / (grid[-1] - grid[-2])
        return float(value[-1] + slope * (mean_pruned - grid[-1]))

    def log_k(self, index: Ints) -> float:
        """Return ln K of chosen lines."""
        mean = float(self.weight @ self.of(self.pruned, index))
        return self.log_pruning(mean) + float(self.weight @ self.of(self.log_rounds, index))

    def fits_server(self, index: Ints) -> bool:
        """Return whether the server's memory holds what chosen lines ask of it."""
        return float(np.sum(self.of(self.server_bytes, index))) <= self.server_memory_bytes


@dataclass(frozen=True, slots=True)
class RoundTimes:
    """The least time of a round for chosen lines, and the shares that reach it."""

    round_s: float
    send_s: float
    """A; 0 where nobody is cut."""
    first_s: float
    """X; 0 where nobody is cut."""
    share: Floats


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The columns of chosen lines, shape (n,), and the sums that shares do not change."""

    curves: Curves
    whole: Bools
    fixed_s: Floats
    bits: Floats
    first_fixed_s: Floats
    """Of the first step: everything but sending."""
    first_bits: Floats
    later: int
    """Steps after the first."""
    rest_s: float
    """`(n - 1) B + n S`: what the cut part takes beside X and (n - 1) A."""

    def load(self, round_s: float, send_s: float) -> tuple[float, Floats]:
        """Return the load of the fullest link over its budget, and the shares that T and A ask."""
        first_s = round_s - self.rest_s - self.later * send_s
        end = np.where(self.whole, round_s, send_s if self.later else np.inf)
        rate = _pace(self.bits, end - self.fixed_s)
        start = np.where(self.whole, 0.0, _pace(self.first_bits, first_s - self.first_fixed_s))
        share = self.curves.share_for(np.maximum(rate, start))
        load = float(np.max(self.curves.load(share) / self.curves.budget))
        alone = float(np.max(share[self.curves.dedicated], initial=0.0))
        return max(load, alone), share

    def least_load(self, round_s: float) -> tuple[float, float]:
        """Return (load, A): the A of the least load for a finish time T. The load is convex in A."""
        cut = ~self.whole
        if not cut.any() or not self.later:
            return self.load(round_s, 0.0)[0], 0.0
        top = self.curves.rate(self.curves.most())[cut]
        low = float(np.max(self.fixed_s[cut] + self.bits[cut] / top))
        first_s = float(np.max(self.first_fixed_s[cut] + self.first_bits[cut] / top))
        high = (round_s - self.rest_s - first_s) / self.later
        if high <= low:
            return self.load(round_s, low)[0], low

        def log_load(send_s: float) -> float:
            return float(np.log(self.load(round_s, send_s)[0]))

        found = minimize_scalar(log_load, bounds=(low, high), method="bounded",
                                options={"xatol": 1e-7 * (high - low)})  # fmt: skip
        return float(np.exp(found.fun)), float(found.x)


def _pace(bits: Floats, left_s: Floats) -> Floats:
    """Return bits a second; more than any link carries where no time is left."""
    return np.where(left_s > 0.0, bits / np.where(left_s > 0.0, left_s, 1.0), _ENDLESS_BPS)


def round_times(problem: MixedProblem, index: Ints, *, most_s: float = np.inf) -> RoundTimes:
    """Return the least round time of chosen lines, by bisection on T and a search for A.

    Args:
        problem: the menus.
        index: the chosen lines, shape (n,).
        most_s: a time that decides the matter: a choice that needs more is not looked at further.

    Returns:
        The times; `round_s` is inf where the choice needs more than `most_s`.
    """
    chosen = _chosen(problem, index)
    low = _least_s(chosen)
    high = low * 1.5
    while high < most_s and chosen.least_load(high)[0] > 1.0:
        low, high = high, high * 2.0
        if high > 1e15:
            break
    high = min(high, most_s)
    load, send_s = chosen.least_load(high)
    if load > 1.0:
        return RoundTimes(np.inf, 0.0, 0.0, np.zeros(len(problem)))

    def over(log_s: float) -> float:
        value = chosen.least_load(float(np.exp(log_s)))[0]
        return float(np.clip(np.log(value), -1e3, 1e3)) if value > 0.0 else -1e3

    if over(np.log(low)) > 0.0:
        root = brentq(over, np.log(low), np.log(high), xtol=_TOLERANCE)
        high = float(np.exp(root + 2.0 * _TOLERANCE))
        _, send_s = chosen.least_load(high)
    _, share = chosen.load(high, send_s)
    first_s = high - chosen.rest_s - chosen.later * send_s
    is_cut = bool((~chosen.whole).any())
    return RoundTimes(high, send_s if is_cut else 0.0, first_s if is_cut else 0.0, share)


def _chosen(problem: MixedProblem, index: Ints) -> _Chosen:
    whole = problem.of(problem.whole.astype(np.float64), index) > 0.0
    fixed_s, bits = problem.of(problem.fixed_s, index), problem.of(problem.bits, index)
    back_s, down_s = problem.of(problem.backward_s, index), problem.of(problem.down_s, index)
    later = problem.steps - 1
    shared = problem.curves.load(np.where(whole, 0.0, down_s))[problem.curves.link]
    back = back_s + np.where(problem.curves.dedicated, down_s, shared)
    longest = float(np.max(np.where(whole, 0.0, back), initial=0.0))
    served = float(np.sum(problem.of(problem.server_s, index)))
    return _Chosen(
        curves=problem.curves, whole=whole, fixed_s=fixed_s, bits=bits,
        first_fixed_s=problem.of(problem.fetch_s, index) + fixed_s + back_s + down_s,
        first_bits=bits + problem.of(problem.adapter_bits, index), later=later,
        rest_s=later * longest + problem.steps * served,
    )  # fmt: skip


def _least_s(chosen: _Chosen) -> float:
    """Return a time below which no division lets everybody finish: each with a whole link."""
    top = chosen.curves.rate(chosen.curves.most())
    alone = chosen.fixed_s + chosen.bits / top
    low = float(np.max(alone[chosen.whole], initial=0.0))
    cut = ~chosen.whole
    if cut.any():
        first = float(np.max((chosen.first_fixed_s + chosen.first_bits / top)[cut]))
        low = max(low, first + chosen.later * float(np.max(alone[cut])) + chosen.rest_s)
    return low
