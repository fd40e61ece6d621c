"""Menus of cuts and codecs for devices on shared links, and the form of the answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.errors import InfeasibleError
from airtune.plan import Bools, Floats, Ints
from airtune.solve.bandwidth import Division, SolveStatus, divide_min_max
from airtune.solve.menu import choose
from airtune.solve.rates import Curves

SLACK = 1e-12


@dataclass(frozen=True, slots=True)
class SplitProblem:
    """Menus of n devices with k lines each; tables have shape (n, k), seconds a local step.

    Raises:
        InfeasibleError: if a device has no line, or no choice keeps the loss budget; the message
            names the device.
    """

    curves: Curves
    """Uplinks, shape (n,)."""
    forward_s: Floats
    bits: Floats
    """To send up, positive."""
    down_s: Floats
    """Of the gradient with the whole downlink."""
    backward_s: Floats
    server_s: Floats
    loss: Floats
    """What the line adds to the loss of quality, at least 0."""
    allowed: Bools
    loss_budget: float
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        none = ~self.allowed.any(axis=1)
        if none.any():
            raise InfeasibleError(
                f"no cut and codec is left for {self.name(int(np.flatnonzero(none)[0]))}: its "
                "memory holds none of them; lower the batch or leave the device out"
            )
        least = np.min(np.where(self.allowed, self.loss, np.inf), axis=1)
        if float(np.sum(least)) > self.loss_budget + SLACK:
            worst = int(np.argmax(least))
            raise InfeasibleError(
                f"the quality budget is {self.loss_budget:.4g}, but the mildest codecs of the menu "
                f"already cost {float(np.sum(least)):.4g}, {self.name(worst)} most with "
                f"{least[worst]:.4g}; raise quality_budget or add a milder codec"
            )

    def __len__(self) -> int:
        return len(self.curves)

    def name(self, row: int) -> str:
        """Return what to call the device in this row."""
        return f"device {self.names[row]}" if self.names else f"device {row}"

    def after_s(self, index: Ints) -> float:
        """Return the seconds of a step after the last activation has come, for chosen lines."""
        return float(self.after_each_s(index[None, :])[0])

    def after_each_s(self, trials: Ints) -> Floats:
        """Return `after_s` of each of m choices, shape (m,)."""
        rows, alone = np.arange(len(self)), self.curves.dedicated
        down, back = self.down_s[rows, trials], self.backward_s[rows, trials]
        received = np.where(alone, down, self.load_each(down)[:, self.curves.link])
        server = np.sum(self.server_s[rows, trials], axis=1)
        return np.asarray(server + np.max(received + back, axis=1))

    def load_each(self, table: Floats) -> Floats:
        """Return the sums over each shared link of the rows of a table, shape (m, links)."""
        m, links = table.shape[0], self.curves.budget.shape[0]
        place = self.curves.link + links * np.arange(m)[:, None]
        counted = np.where(self.curves.dedicated, 0.0, table)
        load = np.bincount(place.ravel(), counted.ravel(), minlength=m * links)
        return load.astype(np.float64).reshape(m, links)

    def room_each(self, trials: Ints, step_s: float) -> Floats:
        """Return what is left of the scarcest link if each choice must be done in `step_s`, (m,)."""
        rows = np.broadcast_to(np.arange(len(self)), trials.shape)
        left = step_s - self.after_each_s(trials)[:, None] - self.forward_s[rows, trials]
        possible = left > 0.0
        rate = self.bits[rows, trials] / np.where(possible, left, 1.0)
        share = self.curves.take(rows.ravel()).share_for(rate.ravel()).reshape(trials.shape)
        possible &= share <= self.curves.most()
        room = self.curves.budget - self.load_each(np.where(possible, share, 0.0))
        return np.where(possible.all(axis=1), np.min(room, axis=1), -np.inf)

    def divide(self, index: Ints) -> Division:
        """Return the best division of the uplinks for chosen lines."""
        rows = np.arange(len(self))
        return divide_min_max(self.curves, self.forward_s[rows, index], self.bits[rows, index])

    def step_s(self, index: Ints, share: Floats) -> float:
        """Return the seconds of a step for chosen lines and shares."""
        rows = np.arange(len(self))
        sent = self.forward_s[rows, index] + self.bits[rows, index] / self.curves.rate(share)
        return float(np.max(sent)) + self.after_s(index)

    def loss_of(self, index: Ints) -> float:
        """Return the loss of quality of chosen lines."""
        return float(np.sum(self.loss[np.arange(len(self)), index]))


@dataclass(frozen=True, slots=True)
class SplitSolution:
    """A line and a share for every device, and how far they can be from the optimum."""

    index: Ints
    share: Floats
    step_s: float
    bound_s: float
    """No choice and division takes less; NaN where the solver certifies nothing."""
    loss: float
    status: SolveStatus
    iterations: int
    residual: float
    method: str

    @property
    def gap(self) -> float:
        """Relative distance of `step_s` from the bound."""
        return self.step_s / self.bound_s - 1.0


def solution_of(problem: SplitProblem, index: Ints) -> SplitSolution:
    """Return the answer of chosen lines with the best division; nothing is certified."""
    division = problem.divide(index)
    return SplitSolution(
        index=index,
        share=division.share,
        step_s=division.round_s + problem.after_s(index),
        bound_s=0.0,
        loss=problem.loss_of(index),
        status="heuristic",
        iterations=0,
        residual=division.residual,
        method="prices and intervals",
    )


def sent_s_of(problem: SplitProblem, found: SplitSolution) -> float:
    """Return A: when the last activation has come."""
    return found.step_s - problem.after_s(found.index)


def first_choice(problem: SplitProblem) -> Ints:
    """Return lines that are quickest with equal shares, within the loss budget, shape (n,)."""
    rate = problem.curves.rate(problem.curves.equal_shares())[:, None]
    alone = (
        problem.forward_s
        + problem.bits / rate
        + problem.down_s
        + problem.backward_s
        + len(problem) * problem.server_s
    )
    load = np.where(problem.allowed, problem.loss, np.inf)
    everyone = np.zeros(len(problem), np.int64)
    return choose(alone, load, np.array([problem.loss_budget + SLACK]), everyone).index
