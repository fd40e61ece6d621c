"""Declarations that are wrong: what `auto` loses by believing them, and what learning leaves of that.

True speeds and rates are the declared ones times .5 to 2, drifting by 5 % a round, and those of one
round differ from them by another 5 %. Costs are `K x T` at the true ones, over those of the plan that
knew them. What is learnt are two filters a device, as a server of real devices keeps them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from airtune.cost import predict
from airtune.engine.forecast import LINK
from airtune.engine.learnt import LearntRatio
from airtune.fleet import Fleet
from airtune.methods import build_method
from airtune.methods.contract import sample_results
from airtune.plan import Decider, Floats, LinkState, Observation, Problem, RoundPlan, State
from benchmarks.figure import Figure, at_least, at_most

_MOST, _DRIFT, _SCATTER = np.log(2.0), 0.05, 0.05
_ROUNDS, _QUANTILE = 60, 0.95


@dataclass(slots=True)
class _Player:
    """A way to plan, and how its rounds went."""

    decider: Decider
    state: State
    learns: bool
    speed: LearntRatio
    rate: LearntRatio
    log_cost: list[float]
    in_time: list[bool]

    def play(self, problem: Problem, declared: Observation, truth: Observation) -> RoundPlan:
        """Plan a round by what is believed, and learn what it took."""
        believed = declared
        if self.learns:
            believed = scaled(declared, self.speed.factor, self.rate.factor)
        plan, self.state = self.decider.plan(problem, self.state, believed)
        came = sample_results(problem, truth, plan)
        came = replace(came, status=np.full(len(came.device), "ok"))
        self.state = self.decider.learn(problem, self.state, came)
        links, speed = parts(declared)
        priced = predict(problem, plan.assignments, links=links, flops_per_s=speed)
        self.speed.learn(came.device, priced.compute_s, came.compute_s)
        self.rate.learn(came.device, priced.upload_s, came.upload_s)
        round_s = float(np.nanmax(came.finish_s))
        rounds = plan.notes["log_rounds"]
        self.log_cost.append(np.log(round_s) + (rounds if isinstance(rounds, float) else 0.0))
        self.in_time.append(round_s <= (plan.predicted_s or np.inf))
        return plan


def wrong_declarations(problem: Problem, fleet: Fleet, name: str) -> Iterator[Figure]:
    """Yield what believing and learning cost against knowing, and how many rounds end as planned.

    Args:
        problem: what a method knows before the first round.
        fleet: its devices, on links of measured capacity.
        name: of the case.
    """
    draw, count = np.random.default_rng(0), len(fleet)
    quantile = {"quantile": _QUANTILE}
    knows, believes, learns, holds = (
        _player(problem, settings, learns=learning)
        for settings, learning in (({}, False), ({}, False), ({}, True), (quantile, True))
    )
    wrong = draw.uniform(-_MOST, _MOST, (2, count))
    for number in range(_ROUNDS):
        links = fleet.links_at(number, 0, 0.0)
        declared = Observation(number, 0.0, links, links.available, fleet.flops_at(number))
        wrong += _DRIFT * draw.normal(size=wrong.shape)
        speed, rate = np.exp(wrong + _SCATTER * draw.normal(size=wrong.shape))
        truth = scaled(declared, speed, rate)
        knows.play(problem, truth, truth)
        for player in (believes, learns, holds):
            player.play(problem, declared, truth)
    lost = {
        label: float(np.expm1(np.mean(np.subtract(player.log_cost, knows.log_cost))))
        for label, player in (("believed", believes), ("learnt", learns))
    }
    told = f"rounds times seconds over those of plans that knew, mean of {_ROUNDS} rounds"
    yield Figure(f"auto.lost_believed[{name}]", lost["believed"], "none", True, told)
    yield at_most(f"auto.lost_learnt[{name}]", lost["learnt"], 0.05, told)
    later = _ROUNDS // 6
    usual = float(np.mean(learns.in_time[later:]))
    told = f"of {_ROUNDS - later} rounds at quantile {_QUANTILE:g}; {usual:.2f} without a quantile"
    yield at_least(f"auto.as_planned[{name}]", float(np.mean(holds.in_time[later:])), 0.9, told)


def scaled(seen: Observation, speed: Floats, rate: Floats) -> Observation:
    """Return an observation with speeds and capacities times these, shape (devices,)."""
    links, flops_per_s = parts(seen)
    links = replace(
        links,
        up_capacity_bps=links.up_capacity_bps * rate,
        down_capacity_bps=links.down_capacity_bps * rate,
    )
    return replace(seen, links=links, flops_per_s=flops_per_s * speed)


def parts(seen: Observation) -> tuple[LinkState, Floats]:
    """Return the links and speeds of an observation that hides nothing."""
    if seen.links is None or seen.flops_per_s is None:
        raise ValueError("the observation must hide nothing")
    return seen.links, seen.flops_per_s


def _player(problem: Problem, settings: dict[str, float], *, learns: bool) -> _Player:
    decider, count = build_method("auto", settings).decider, len(problem.devices)
    return _Player(
        decider,
        decider.init(problem),
        learns,
        LearntRatio(count),
        LearntRatio(count, **LINK),
        [],
        [],
    )
