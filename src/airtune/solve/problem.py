"""The joint pruning and bandwidth problem, in columns over devices, and the form of its answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.errors import InfeasibleError
from airtune.plan import Floats
from airtune.solve.bandwidth import SolveStatus
from airtune.solve.rates import Curves

SLACK = 1e-12
"""Relative room for rounding when a constraint is compared with its limit."""


@dataclass(frozen=True, slots=True)
class JointProblem:
    """Minimise the finish time of the slowest device over kept fractions x and shares z.

        minimise max_i T_i,  T_i = fixed_i + x_i compute_i + (fixed_bits_i + x_i bits_i) / R_i(z_i)
        subject to  sum of z on each shared link <= its budget,
                    least_kept <= x <= most_kept,   sum_i w_i (1 - x_i) <= prune_budget

    Columns have shape (n,). `1 - x` is the pruning rate rho of the literature; what pruning does
    not shrink (download, head, width side of the adapters) stands in the fixed columns.

    Raises:
        InfeasibleError: if no x meets the pruning budget, or a column is out of range; the message
            names the constraint and the device.

    Source:
        arXiv 2602.01024 for the problem; equations reconstructed.
    """

    curves: Curves
    fixed_s: Floats
    """Seconds before and beside what pruning shrinks."""
    compute_s: Floats
    """Seconds of the computation that shrinks in proportion to x, at x = 1."""
    fixed_bits: Floats
    """Payload that pruning does not shrink, in bit."""
    bits: Floats
    """Payload that shrinks in proportion to x, in bit at x = 1; positive."""
    weight: Floats
    """Share of the training data; sums to 1."""
    least_kept: Floats
    """1 - rho_max; positive."""
    most_kept: Floats
    """Below 1 where the whole model does not fit the device's memory."""
    prune_budget: float
    """Gamma: the largest weighted mean pruning rate."""
    names: tuple[str, ...] = ()
    """Devices as an error message should call them; empty = by row."""

    def __post_init__(self) -> None:
        self._check_range("compute_s", self.compute_s, 0.0)
        self._check_range("fixed_s", self.fixed_s, 0.0)
        self._check_range("fixed_bits", self.fixed_bits, 0.0)
        self._check_range("bits", self.bits, np.finfo(float).tiny)
        self._check_range("weight", self.weight, 0.0)
        self._check_range("least_kept", self.least_kept, np.finfo(float).tiny)
        self._check_range("most_kept", self.most_kept - self.least_kept, -SLACK)
        least = float(np.sum(self.weight * (1.0 - self.most_kept)))
        if not self.prune_budget >= least - SLACK:
            worst = int(np.argmax(self.weight * (1.0 - self.most_kept)))
            raise InfeasibleError(
                f"the pruning budget is {self.prune_budget:.4g}, but memory forces a weighted mean "
                f"of at least {least:.4g}; {self.name(worst)} must prune "
                f"{1.0 - self.most_kept[worst]:.4g}: raise the budget or leave that device out"
            )

    def __len__(self) -> int:
        return len(self.curves)

    def name(self, row: int) -> str:
        """Return what to call the device in this row."""
        return f"device {self.names[row]}" if self.names else f"device {row}"

    def _check_range(self, column: str, values: Floats, low: float) -> None:
        wrong = ~(np.isfinite(values) & (values >= low))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise InfeasibleError(
                f"{column} of {self.name(row)} is {values[row]:g}; it must be finite and "
                f"at least {low:g}"
            )

    @property
    def least_value(self) -> float:
        """Q: the least weighted sum of kept fractions that the pruning budget allows."""
        return float(np.sum(self.weight)) - self.prune_budget

    def finish_s(self, kept: Floats, share: Floats) -> Floats:
        """Return when each device finishes, shape (n,)."""
        payload = self.fixed_bits + kept * self.bits
        return self.fixed_s + kept * self.compute_s + payload / self.curves.rate(share)

    def violation(self, kept: Floats, share: Floats) -> float:
        """Return the largest violation of a constraint, relative to its limit."""
        load = self.curves.load(share) / self.curves.budget - 1.0
        value = 1.0 - float(np.sum(self.weight * kept)) / max(self.least_value, SLACK)
        low = float(np.max(self.least_kept - kept))
        high = float(np.max(kept - self.most_kept))
        return max(float(np.max(load)), value if self.least_value > 0.0 else 0.0, low, high, 0.0)


@dataclass(frozen=True, slots=True)
class JointSolution:
    """Kept fractions and shares, and how far they can be from the optimum."""

    kept: Floats
    share: Floats
    round_s: float
    bound_s: float
    """No choice finishes sooner: certified by the dual; NaN where the solver certifies nothing."""
    price: Floats
    """Multiplier of each link's budget, shape (links,); 0 where the link is not the bottleneck."""
    status: SolveStatus
    iterations: int
    residual: float
    method: str

    @property
    def gap(self) -> float:
        """Relative distance of `round_s` from the bound: the duality gap."""
        return self.round_s / self.bound_s - 1.0
