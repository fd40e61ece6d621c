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

from airtune.errors import InfeasibleError
from airtune.plan import Bools, Floats, Ints
from airtune.solve.rates import Curves


@dataclass(frozen=True, slots=True)
class MixedProblem:
    """Menus of n devices with k lines each; tables have shape (n, k), a column is one kind of line.

    Raises:
        InfeasibleError: if a device has no line; the message names it.
    """

    curves: Curves
    """Uplinks, shape (n,)."""
    steps: int
    """Local steps of a round, at least 1."""
    whole: Bools
    """Which columns are whole lines, shape (k,)."""
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
    most_log_rounds: float = float("inf")
    """Most ln K of a choice."""
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

    def fits(self, index: Ints) -> bool:
        """Return whether chosen lines fit the server's memory and the rounds allowed."""
        held = float(np.sum(self.of(self.server_bytes, index)))
        return held <= self.server_memory_bytes and self.log_k(index) <= self.most_log_rounds
