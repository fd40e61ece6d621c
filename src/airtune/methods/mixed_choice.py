"""The choice of a line and a share for every able device: starts, one solve a rank, the least K T.

Source: this project's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from airtune.cost import predict
from airtune.errors import InfeasibleError
from airtune.methods.mixed_lines import MixedLines
from airtune.methods.mixed_pricing import mixed_problem
from airtune.methods.seen import Seen
from airtune.plan import Bools, Floats, Ints, Observation, Problem
from airtune.solve import Curves, MixedProblem, MixedSolution, round_times, solve_mixed

_LEVELS = 16
"""Pruning levels of a rank among which is searched, spread over those of the ladder."""
_LEAST_LEVELS, _WHOLE = 4, 96
"""With many kinds of whole lines each has fewer levels, so that there are about so many in all."""
_LEAST_GAP, _MOST_GAP = 0.009, 0.03
"""Relative gap at which the search ends: 0.9 / N between these."""
_CUTS = 8
"""Cuts among which is searched; the steps between them grow. Each has the full rank."""
_FEW_DEVICES = 200
"""Fleets of no more search the least rank at each cut too."""


@dataclass(frozen=True, slots=True)
class Menus:
    """The menus of this round's m able devices."""

    problem: Problem
    observation: Observation
    seen: Seen
    lines: MixedLines
    allowed: Bools
    """Shape (m, k)."""
    curves: Curves
    longer: Floats
    """How many times its expected time each device of `seen` is taken to need, (n,); it is in
    `curves` and in the speeds of `seen`."""
    most_log_rounds: float
    """Most ln K of an answer."""
    reserved_bytes: float
    """Of the server, for devices that are there and cannot send."""

    def mixed(self, columns: Ints, largest_rank: int) -> MixedProblem:
        """Return the problem of some lines, whose broadcast is at this rank."""
        return mixed_problem(
            self.problem,
            self.seen,
            self.lines.take(columns),
            self.allowed[:, columns],
            largest_rank=largest_rank,
            curves=self.curves,
            most_log_rounds=self.most_log_rounds,
            reserved_bytes=self.reserved_bytes,
        )

    @property
    def declared_flops_per_s(self) -> Floats:
        """This round's speeds as they are declared, shape (devices,)."""
        speed = self.observation.flops_per_s
        return np.full(self.observation.available.shape, np.nan) if speed is None else speed

    def round_s(self, index: Ints, share: Floats) -> float:
        """Return the seconds that a choice is taken to need, shape (m,)."""
        assignments = self.lines.assignments(
            self.problem, self.seen.device[self.seen.able], index, share
        )
        speed = self.declared_flops_per_s
        finish_s = predict(
            self.problem, assignments, links=self.seen.links, flops_per_s=speed
        ).finish_s
        return float(np.max(finish_s * self.seen.of(self.longer)))


@dataclass(frozen=True, slots=True)
class MixedChoice:
    """What the able devices are told."""

    index: Ints
    """Into the menu, shape (m,)."""
    share: Floats
    log_rounds: float
    """ln K."""
    round_s: float
    source: str
    """Where the answer is from, in a few words."""

    @property
    def log_cost(self) -> float:
        """Return `ln K + ln T`."""
        return self.log_rounds + float(np.log(self.round_s))


@dataclass(frozen=True, slots=True)
class Start:
    """A choice with which the search begins: the answer is not worse."""

    source: str
    index: Ints
    """Into the menu, shape (m,)."""
    share: Floats | None = None
    """None = the best ones."""


def choose(
    menus: Menus, starts: Sequence[Start], held: Start | None, hysteresis: float
) -> tuple[MixedChoice, MixedSolution]:
    """Return the choice with the least K T, and the solver's own answer with its bound and prices.

    Args:
        menus: of this round.
        starts: plans of other methods.
        held: the last round's lines, where every device may still have them.
        hysteresis: part of the cost below which a saving does not change lines.

    Raises:
        InfeasibleError: if the server's memory holds no choice, or none keeps to the rounds allowed.
    """
    known = [*starts, *([held] if held else [])]
    columns = _columns(menus, known)
    old = _timed(menus, held) if held else None
    # an answer that saves less than the hysteresis would not be taken, so it is not sought
    limit = old.log_cost - float(np.log1p(hysteresis)) if old else np.inf
    tried = [*(start.index for start in known), *_alike(menus, columns)]
    best = _solved(menus, columns, tried, limit)
    found = [_timed(menus, Start("chosen together", columns[best.index], best.share))]
    found += [_timed(menus, start) for start in starts]
    answer = min(found, key=lambda each: each.log_cost)
    return (answer if old is None or answer.log_cost < limit else old), best


def _timed(menus: Menus, start: Start) -> MixedChoice:
    """Return a choice with its cost: infinite where the server or the rounds allowed refuse it."""
    index, share = start.index, start.share
    columns, place = np.unique(index, return_inverse=True)
    try:
        mixed = menus.mixed(columns, int(np.max(menus.lines.rank[index])))
    except InfeasibleError:  # the server does not hold these cuts
        return MixedChoice(index, np.zeros(index.size), np.inf, np.inf, start.source)
    if share is None:
        share = round_times(mixed, place).share
    round_s = menus.round_s(index, share) if mixed.fits(place) else float("inf")
    return MixedChoice(index, share, mixed.log_k(place), round_s, start.source)


def _columns(menus: Menus, starts: Sequence[Start]) -> Ints:
    """Return the lines among which is searched, rising: spread ones, forced ones and the starts'."""
    lines, used = menus.lines, np.asarray(menus.allowed.any(axis=0))
    found = [start.index for start in starts]
    kinds = list(lines.kinds())
    levels = int(np.clip(_WHOLE // max(len(kinds), 1), _LEAST_LEVELS, _LEVELS))
    for kind in kinds:
        rows = kind[used[kind]]
        if rows.size:
            asked = np.linspace(lines.pruned[rows[0]], lines.pruned[rows[-1]], levels)
            found.append(rows[np.searchsorted(lines.pruned[rows], asked - 1e-12)])
            first = np.argmax(menus.allowed[:, rows], axis=1)
            found.append(rows[first[menus.allowed[:, rows].any(axis=1)]])
    cuts = np.unique(lines.cut[used & ~lines.whole])
    spread = np.unique(np.rint(np.geomspace(1, max(cuts.size, 1), _CUTS)).astype(np.int64)) - 1
    chosen = cuts[spread[spread < cuts.size]]
    rank = lines.rank[~lines.whole]
    ranks = [rank.max(initial=0)]
    if menus.allowed.shape[0] <= _FEW_DEVICES:
        ranks.append(rank.min(initial=ranks[0]))
    is_asked = np.isin(lines.cut, chosen) & np.isin(lines.rank, ranks)
    found.append(np.flatnonzero(used & ~lines.whole & is_asked))
    return np.unique(np.concatenate(found))


def _alike(menus: Menus, columns: Ints) -> Iterator[Ints]:
    """Yield choices in which all train the whole model alike, as far as their memory lets them."""
    for kind in menus.lines.take(columns).kinds():
        rows = columns[kind]
        allowed = menus.allowed[:, rows]
        if not allowed.any(axis=1).all():
            continue
        floor = np.argmax(allowed, axis=1)
        top = allowed.shape[1] - 1 - np.argmax(allowed[:, ::-1], axis=1)
        for level in range(rows.size):
            yield rows[np.clip(level, floor, top)]


def _solved(
    menus: Menus, columns: Ints, starts: Sequence[Ints], better_than: float
) -> MixedSolution:
    """Return the best answer over the largest rank of a plan, at which adapters are broadcast."""
    lines, floor = menus.lines, np.inf
    # one device's line is about this part of what a small fleet's round costs: no bound is nearer
    tolerance = float(np.clip(0.9 / len(menus.curves), _LEAST_GAP, _MOST_GAP))
    best: MixedSolution | None = None
    refused: InfeasibleError | None = None
    places = [np.searchsorted(columns, start) for start in starts]
    ranks = [int(lines.rank[start].max()) for start in starts]
    for rank in np.unique(lines.rank[columns])[::-1].tolist():
        may = menus.allowed[:, columns] & (lines.rank[columns] <= rank)
        if not may.any(axis=1).all():
            continue
        usable = [index for index, most in zip(places, ranks, strict=True) if most == rank]
        cost = best.log_cost if best else np.inf
        try:
            found = solve_mixed(
                menus.mixed(columns, rank),
                usable,
                tolerance=tolerance,
                better_than=min(cost, better_than),
            )
        except InfeasibleError as error:
            refused = refused or error
            continue
        best = found if best is None or found.log_cost < cost else best
        floor = min(floor, found.log_bound)
    if best is None:
        raise refused or InfeasibleError("no device has a line at one rank for all")
    return replace(best, log_bound=min(floor, best.log_bound))
