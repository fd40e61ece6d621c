"""What more of something would save: the plan made again with each quantity changed a little.

The changed plan is a plan like any other, on the same drawn links, so a price is exact for its step
and says nothing of larger ones; `airtune plan --within` answers those.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from airtune.cost import ladder
from airtune.errors import InfeasibleError
from airtune.fleet import Fleet
from airtune.fleet.change import with_bandwidth, with_memory, with_server, with_speed
from airtune.planner.changed import seen_plan
from airtune.planner.sample import Draws, Sampled, sample
from airtune.planner.setting import PlanSetting
from airtune.planner.words import next_to
from airtune.units import GIB

PRICED_DEVICES = 100
"""Fleets of more devices are priced only when asked."""
_MOST_KINDS = 6
_FELT = 0.005
"""Part of the time under which a change counts as none."""
_SAME = 1e-9
"""Mean pruned fractions that differ by less are alike."""


@dataclass(frozen=True, slots=True)
class Price:
    """One change and what it does to the time of the run."""

    change: str
    saves: float
    """Part of the time; negative = the run takes longer."""
    total_s: float
    """Of the changed plan."""
    trains_more: bool = False
    """More devices take part than in the plan as it is, or less is pruned."""


def prices_of(setting: PlanSetting, draws: Draws | None = None) -> tuple[Price, ...]:
    """Return what small changes of the fleet would save, the best first.

    Args:
        setting: what is planned.
        draws: of links and speeds, by which both plans are compared; None = some of the run.

    Raises:
        InfeasibleError: if the setting itself has no plan.
    """
    sampled = sample(setting, draws)
    now = seen_plan(setting, sampled)
    if not 0.0 < now.total_s < math.inf:
        return ()
    found = []
    for change, fleet in _changes(setting, sampled):
        try:
            changed = setting.on(fleet)
            then = seen_plan(changed, sample(changed, draws))
        except InfeasibleError:
            continue
        more = then.able > now.able or then.pruned < now.pruned - _SAME
        found.append(Price(change, 1.0 - then.total_s / now.total_s, then.total_s, more))
    return tuple(sorted(found, key=lambda price: -price.saves))


def price_lines(prices: tuple[Price, ...], quantile: float | None = None) -> list[str]:
    """Return the prices in words; those without effect share a line.

    Args:
        prices: the best first.
        quantile: of the rounds' times, next to which the rounds that were compared end; None = the
            median, which is not said.

    >>> price_lines((Price("10 % more uplink", 0.06, 9.4), Price("10 % more downlink", 0.0, 10.0)))
    ['10 % more uplink saves 6.0 %', 'saves nothing: 10 % more downlink']
    """
    felt = [price for price in prices if abs(price.saves) >= _FELT]
    compared = next_to(quantile)
    idle = [price.change for price in prices if abs(price.saves) < _FELT]
    return [
        *(
            f"{price.change} {'saves' if price.saves > 0 else 'costs'} {_percent(price.saves)}"
            f"{'' if price.saves > 0 else _why(price)}"
            for price in felt
        ),
        *([f"saves nothing: {', '.join(idle)}"] if idle else []),
        *([f"all prices are for {compared}"] if prices and compared else []),
    ]


def _changes(setting: PlanSetting, sampled: Sampled) -> Iterator[tuple[str, Fleet]]:
    """Yield each change in words with the fleet that has it."""
    fleet, chosen = setting.fleet, setting.chosen
    yield "10 % more uplink", with_bandwidth(fleet, up=1.1)
    yield "10 % more downlink", with_bandwidth(fleet, down=1.1)
    if sampled.cut.any() or chosen.method.name == "pooled":
        yield "a server twice as fast", with_server(fleet, 2.0)
    if sampled.last:
        slowest = int(np.bincount(sampled.last).argmax())
        yield f"{fleet.names[slowest]} twice as fast", with_speed(fleet, slowest, 2.0)
    for kind in _short_of_memory(setting):
        name = (
            fleet.names[fleet.kinds.index(kind)] if fleet.kinds.count(kind) == 1 else f"each {kind}"
        )
        yield f"1 GiB more on {name}", with_memory(fleet, more_bytes=GIB, kind=kind)


def _short_of_memory(setting: PlanSetting) -> list[str]:
    """Return the kinds of which a device cannot train the dense model, the shortest first."""
    dense = float(ladder(setting.problem.shape, setting.problem.workload).peak_bytes[0])
    fleet = setting.fleet
    least = {
        kind: float(fleet.memory_bytes[[one == kind for one in fleet.kinds]].min())
        for kind in dict.fromkeys(fleet.kinds)
    }
    short = [kind for kind, memory in least.items() if memory < dense]
    return sorted(short, key=lambda kind: least[kind])[:_MOST_KINDS]


def _why(price: Price) -> str:
    """Say why more of something makes the run longer."""
    if price.trains_more:
        return ", as more devices take part or less is pruned"
    return (
        ": the method also weighs quality against time, or its search found a better plan without "
        "the change"
    )


def _percent(part: float) -> str:
    digits = 0 if math.isinf(part) or abs(part) >= 0.095 else 1
    return f"{100 * abs(part):.{digits}f} %"
