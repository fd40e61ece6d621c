"""The rounds that a plan looks at: the method plans each, and the cost model prices it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from airtune.cost import Prediction, predict, split_cost, train_flops
from airtune.engine.limits import asked_of
from airtune.keys import generator
from airtune.plan import (
    Assignments,
    Bools,
    CodecSpec,
    Floats,
    Ints,
    LinkState,
    Observation,
    Problem,
    mask_observation,
    mask_problem,
)
from airtune.plan.blame import blamed
from airtune.planner.control import off_the_network, server_s, there
from airtune.planner.outage import outages_at
from airtune.planner.setting import PlanSetting

SAMPLED_ROUNDS = 8
"""Rounds whose links are drawn, spread over the run; figures are medians over them."""
_TYPICAL = 4
"""Of these, the rounds that are planned anew when something is changed."""
_LEAST_DRAWS, _MOST_DRAWS = 64, 400
_BEYOND = 3.2
"""Draws that lie beyond a quantile, on average."""
PRICED = ("peak_bytes", "download_s", "compute_s", "upload_s", "finish_s", "upload_bytes",
          "download_bytes", "energy_j")  # fmt: skip
_ENDLESS = ("download_s", "upload_s", "finish_s", "energy_j")
"""Of these, what has no end where a link never carries anything."""
_TOLD = ("pruned", "rank", "local_steps", "share", "trained", "whole_flops", "outage_s")


@dataclass(frozen=True, slots=True)
class Draws:
    """By which numbers links and speeds are drawn, of a span of rounds."""

    numbers: tuple[int, ...]
    span: int

    def rounds(self, rounds: int) -> list[int]:
        """Return the round of a run of so many in which each draw is planned.

        For a quantile there are more draws than the run may have rounds; those are of later rounds.
        """
        return [number * rounds // self.span for number in self.numbers]

    def begin_s(self, trace_s: float) -> list[float]:
        """Return when each draw reads the measured traces of the links: spread over their length.

        Args:
            trace_s: length of the longest trace, in seconds; 0 = there is none.

        >>> Draws((0, 5, 9), 10).begin_s(60.0)
        [0.0, 30.0, 54.0]
        """
        return [number * trace_s / self.span for number in self.numbers]


@dataclass(frozen=True, slots=True)
class Totals:
    """What a run would cost in all."""

    round_s: float
    """The median over the sampled rounds, or their quantile."""
    total_s: float
    upload_bytes: float
    download_bytes: float
    energy_j: float
    """Of the devices; the server's is not in it."""
    flops: float
    """Of the whole training, whoever computes it."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """Columns (rounds, devices) over the sampled rounds; NaN where a device took no part.

    Seconds and joules are NaN as well where the link never carries anything. `outage_s` is what a
    device waits for its link; no other column holds that.
    """

    columns: dict[str, Floats]
    draws: Draws
    round_s: Floats
    """Of every planned round; a sampled one takes several where only a part of the fleet is asked."""
    waited_s: Floats
    """By how much each is longer for links that carry nothing when it begins."""
    draw: Ints
    """Which of the draws each planned round is of."""
    last: list[int]
    """Who finished last in each planned round in which anybody finished."""
    cut: Ints
    """Shape (devices,), of the last round in which each took part."""
    codec: list[CodecSpec | None]
    """Of what crosses each device's cut; None where nothing does."""
    server_peak_bytes: float
    """Most that the server needs for the devices that are cut; 0 = none is."""
    arrives: float = 1.0
    """The part of those asked that a round waits for: below 1 in asynchronous rounds."""

    @property
    def part(self) -> float:
        """The part of the rounds in which a device is asked."""
        return len(self.columns["pruned"]) / max(len(self.round_s), 1)

    @property
    def takes_part(self) -> Floats:
        """The part of the rounds in which each device takes part, shape (devices,)."""
        there = ~np.isnan(self.columns["pruned"])
        return np.asarray(there.sum(axis=0) / max(len(self.round_s), 1), np.float64)

    @property
    def middle(self) -> dict[str, Floats]:
        """Medians over the rounds, shape (devices,); NaN where a device never took part."""
        return {name: _median(column) for name, column in self.columns.items()}

    @property
    def able(self) -> Bools:
        """Devices that mostly train when asked: the plan fits their memory, and they are in time."""
        return np.nan_to_num(_median(self.columns["trained"])) >= 0.5

    def typical(self, quantile: float | None = None) -> Draws:
        """Return the few draws whose rounds end next to the median, or to a quantile of all."""
        latest = np.zeros(len(self.draws.numbers))
        np.maximum.at(latest, self.draw, self.round_s + self.waited_s)
        position = (0.5 if quantile is None else quantile) * (latest.size - 1)
        beside = np.abs(np.argsort(np.argsort(latest, kind="stable")) - position)
        kept = np.sort(np.argsort(beside, kind="stable")[:_TYPICAL])
        return Draws(tuple(self.draws.numbers[row] for row in kept.tolist()), self.draws.span)

    def totals(self, rounds: int, quantile: float | None = None) -> Totals:
        """Return what a run of so many rounds costs.

        Args:
            rounds: of the run.
            quantile: of the rounds' times that all rounds take, in (0, 1); None = their median,
                and the mean of what is waited for links.
        """
        if not self.round_s.size:
            round_s = math.nan
        elif quantile is None:
            round_s = float(np.median(self.round_s) + self.waited_s.mean())
        else:
            round_s = float(np.quantile(self.round_s + self.waited_s, quantile))
        middle = self.middle
        sums = {
            name: float(np.nansum(middle[name] * self.takes_part)) * rounds * self.arrives
            for name in ("upload_bytes", "download_bytes", "energy_j", "whole_flops")
        }
        flops = sums.pop("whole_flops")
        return Totals(round_s=round_s, total_s=round_s * rounds, flops=flops, **sums)


def sample(setting: PlanSetting, draws: Draws | None = None) -> Sampled:
    """Let the method plan a few rounds and price each plan, the fleet part by part in each.

    The method plans as in a run, and memory is that of the longest text; the rest is priced by
    the problem at the usual length.

    Args:
        setting: what is planned.
        draws: of links and speeds; None = a few, spread over the run.

    Raises:
        InfeasibleError: if the method finds no plan.
    """
    problem, typical, fleet, chosen = (
        setting.problem,
        setting.typical,
        setting.fleet,
        setting.chosen,
    )
    decider = chosen.method.decider
    known = mask_problem(problem, decider.needs)
    with blamed(chosen.method, "init"):
        state = decider.init(known)
    draws = draws or draws_of(problem.rounds, None)
    count = len(draws.numbers)
    columns = {name: np.full((count, len(fleet)), np.nan) for name in (*_TOLD, *PRICED)}
    round_s: list[float] = []
    waits_s: list[float] = []
    of: list[int] = []
    last: list[int] = []
    cut = np.zeros(len(fleet), np.int64)
    codec: list[CodecSpec | None] = [None] * len(fleet)
    server_bytes, arrives = 0.0, 1.0
    buffer = 0 if chosen.is_control else setting.recipe.train.async_buffer
    moments = zip(
        draws.rounds(problem.rounds), draws.numbers, draws.begin_s(fleet.trace_s), strict=True
    )
    for row, (number, draw, begin_s) in enumerate(moments):
        outages, flops_per_s = outages_at(fleet, draw, begin_s), fleet.flops_at(draw)
        links = outages.links
        present = there(chosen, links.available)
        for asked in turns(present, setting.participation, generator(problem.seed, "plan", draw)):
            observation = Observation(number, begin_s, links, asked, flops_per_s)
            seen = mask_observation(observation, decider.needs)
            with blamed(chosen.method, "plan"):
                plan, state = decider.plan(known, state, seen)
            assignments = plan.assignments
            cost = _priced(setting, assignments, links, flops_per_s)
            able = _able(problem, assignments, cost)
            outage_s = outages.waits(assignments, cost) * (not chosen.is_control)
            _note(columns, row, typical, assignments, cost=cost, able=able, outage_s=outage_s)
            cut[assignments.device] = assignments.cut
            for one in assignments if assignments.cut.any() else ():
                codec[one.device] = one.codec if one.cut else None
            if assignments.cut.any():
                server_bytes = max(server_bytes, split_cost(problem, assignments).server_peak_bytes)
            late = np.where(able, cost.finish_s + outage_s, 0.0)
            took_s = _round_s(setting, np.where(able, cost.finish_s, 0.0))
            waits_s.append(_round_s(setting, late) - took_s)
            round_s.append(took_s)
            of.append(row)
            if buffer:
                arrives = min(buffer / max(int(able.sum()), 1), 1.0)
            if late.any():
                last.append(int(assignments.device[int(np.argmax(late))]))
    return Sampled(
        columns,
        draws,
        np.array(round_s),
        np.array(waits_s),
        np.array(of, np.int64),
        last,
        cut,
        codec,
        server_bytes,
        arrives,
    )


def _priced(
    setting: PlanSetting, assignments: Assignments, links: LinkState, flops_per_s: Floats
) -> Prediction:
    """Price a plan: memory by the longest text, the rest by the usual length."""
    longest, cost = (
        predict(one, assignments, links=links, flops_per_s=flops_per_s)
        for one in (setting.problem, setting.typical)
    )
    cost = replace(cost, peak_bytes=longest.peak_bytes)
    if not setting.chosen.is_control:
        return cost
    return off_the_network(setting.chosen, setting.typical, assignments, cost)


def _round_s(setting: PlanSetting, finish_s: Floats) -> float:
    """Return how long a round takes whose devices finish then, (n,); 0 where one never does."""
    latest_s = setting.problem.deadline_s or np.inf
    if setting.chosen.is_control:
        alone_s = server_s(setting.chosen, setting.typical)
        return float(min(finish_s.max(initial=0.0), latest_s)) + alone_s
    buffer = setting.recipe.train.async_buffer
    took_s = buffered_s(finish_s, buffer) if buffer else finish_s.max(initial=0.0)
    return float(min(took_s, latest_s))


def buffered_s(finish_s: Floats, buffer: int) -> float:
    """Return the mean time in which a buffer fills, where every device begins anew when it is done.

    Args:
        finish_s: of a device's own round, (n,); 0 where none comes.
        buffer: updates.

    >>> float(buffered_s(np.array([1.0, 2.0, 2.0, 0.0]), 2)), float(buffered_s(np.array([3.0]), 2))
    (1.0, 3.0)
    """
    takes_s = finish_s[finish_s > 0.0]
    if takes_s.size <= buffer:
        return float(takes_s.max(initial=0.0))
    return buffer / float(np.sum(1.0 / takes_s))


def turns(present: Bools, participation: float, draw: np.random.Generator) -> Iterator[Bools]:
    """Yield who is asked together, until everybody who is there was asked; nobody = nothing.

    Args:
        present: shape (devices,).
        participation: the part of them that a round asks, in (0, 1].
        draw: mixes them; all are asked in one turn where the part is 1.
    """
    order = draw.permutation(np.flatnonzero(present))
    together = asked_of(len(order), participation)
    for first in range(0, len(order), together):
        # the last turn is filled up with the first of the order
        asked = np.zeros(present.shape, np.bool_)
        asked[np.take(order, range(first, first + together), mode="wrap")] = True
        yield asked


def draws_of(rounds: int, quantile: float | None) -> Draws:
    """Return draws spread over a run: few, or as many as show a quantile of the rounds' times.

    >>> [len(draws_of(100, level).numbers) for level in (None, 0.95, 0.99)]
    [8, 64, 320]
    """
    count = min(rounds, SAMPLED_ROUNDS)
    if quantile is not None:
        count = min(max(_LEAST_DRAWS, round(_BEYOND / (1.0 - quantile))), _MOST_DRAWS)
    span = max(rounds, count)
    return Draws(tuple(np.linspace(0, span - 1, count).astype(int).tolist()), span)


def _able(problem: Problem, assignments: Assignments, cost: Prediction) -> Bools:
    """Return which rows of a plan fit their device's memory, keep its energy, and ever finish."""
    memory, most_j = problem.devices.memory_bytes, problem.joules_per_round
    fits = True if memory is None else cost.peak_bytes <= memory[assignments.device]
    keeps = True if most_j is None else ~(cost.energy_j > most_j)
    return np.asarray(fits & keeps & np.isfinite(cost.finish_s))


def _note(
    columns: dict[str, Floats],
    row: int,
    typical: Problem,
    assignments: Assignments,
    *,
    cost: Prediction,
    able: Bools,
    outage_s: Floats,
) -> None:
    """Put down what the devices of a plan are told and what it costs them."""
    whole = replace(assignments, cut=np.zeros_like(assignments.cut))
    deadline_s = np.inf if typical.deadline_s is None else typical.deadline_s
    found = {
        "pruned": typical.shape.pruned_fraction(assignments.prune_heads, assignments.prune_ffn),
        "rank": assignments.rank,
        "local_steps": assignments.local_steps,
        "share": assignments.share,
        "trained": able & (cost.finish_s <= deadline_s),
        "outage_s": outage_s,
        "whole_flops": train_flops(typical.shape, typical.workload, whole),
        **{name: getattr(cost, name) for name in PRICED},
    }
    for name in _ENDLESS:
        found[name] = np.where(np.isfinite(found[name]), found[name], np.nan)
    for name, values in found.items():
        columns[name][row, assignments.device] = values


def _median(column: Floats) -> Floats:
    """Return medians over rounds, shape (devices,); NaN where a device never took part."""
    seen = ~np.isnan(column).all(axis=0)
    found = np.full(column.shape[1], np.nan)
    found[seen] = np.nanmedian(column[:, seen], axis=0)
    return found
