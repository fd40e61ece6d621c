"""How numbers are written for people: short, with units, misses as "> T"."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from airtune.plan import Floats
from airtune.records import Metric
from airtune.report.stats import Change, Reached
from airtune.units import format_bytes, format_seconds

Form = Callable[[float], str]


def hold(text: str) -> str:
    """Return a text that is not broken over two lines."""
    return text.replace(" ", "\u00a0")


def format_joules(energy_j: float) -> str:
    """Write an energy.

    >>> format_joules(0.25), format_joules(5400.0)
    ('0.25 J', '5.4 kJ')
    """
    if abs(energy_j) >= 1e6:
        return f"{energy_j / 1e6:.3g} MJ"
    if abs(energy_j) >= 1e3:
        return f"{energy_j / 1e3:.3g} kJ"
    return f"{energy_j:.3g} J"


def format_reached(costs: Sequence[Reached], form: Form) -> str:
    r"""Write the mean cost to target over seeds; "> T" where a seed missed it.

    >>> format_reached([Reached(2.0, True), Reached(4.0, False)], format_seconds)
    '>\xa03.0\xa0s'
    """
    if not any(cost.hit or cost.value for cost in costs):
        return "–"
    mean = form(sum(cost.value for cost in costs) / len(costs))
    return hold(mean if all(cost.hit for cost in costs) else f"> {mean}")


def format_total(costs: Sequence[Reached], form: Form) -> str:
    """Write the mean of what whole runs spent, where no target was set."""
    return hold(form(sum(cost.value for cost in costs) / len(costs)))


def count_hits(costs: Sequence[Reached]) -> str:
    """Say in how many seeds the target was hit; nothing where one seed hit it.

    >>> count_hits([Reached(2.0, True), Reached(4.0, False)])
    'hit in 1 of 2 seeds'
    """
    hits = sum(cost.hit for cost in costs)
    if len(costs) == 1:
        return "" if hits else "missed"
    return f"hit in {hits} of {len(costs)} seeds"


def format_change(change: Change) -> str:
    r"""Write a relative change with a sign: "−43 %", "at least −43 %", or "unknown".

    >>> format_change(Change(-0.43, -0.5, -0.4, 5))
    '−43\xa0%'
    """
    if change.bound == "unknown":
        return "unknown"
    lead = {"equal": "", "at_most": "≤ ", "at_least": "≥ "}[change.bound]
    return hold(lead + _percent(change.mean))


def format_interval(change: Change) -> str:
    r"""Write the interval of a relative change, or say why there is none.

    >>> format_interval(Change(-0.43, -0.5, -0.4, 5))
    '95\xa0% interval −50\xa0…\xa0−40\xa0%, 5\xa0seeds'
    """
    if change.bound == "unknown":
        return "no ratio"
    if math.isnan(change.low):
        return f"{count_seeds(change.pairs)}: no interval"
    return f"{hold('95 %')} interval {format_range(change)}, {hold(count_seeds(change.pairs))}"


def format_range(change: Change) -> str:
    r"""Write the ends of a relative interval, nothing where there is none.

    >>> format_range(Change(-0.43, -0.5, -0.4, 5))
    '−50\xa0…\xa0−40\xa0%'
    """
    if math.isnan(change.low):
        return ""
    return hold(f"{_percent(change.low).removesuffix(' %')} … {_percent(change.high)}")


def format_gap(change: Change, metric: Metric) -> str:
    r"""Write an absolute difference of a quality with its interval.

    >>> from airtune.records import METRICS
    >>> format_gap(Change(-0.02, -0.03, -0.01, 5), METRICS["loss"])
    '−0.020 (−0.030\xa0…\xa0−0.010)'
    """
    if change.bound == "unknown":
        return "–"
    mean, low, high = map(metric.write_change, (change.mean, change.low, change.high))
    return mean if math.isnan(change.low) else f"{mean} {hold(f'({low} … {high})')}"


def count_seeds(count: int) -> str:
    """Write a number of seeds.

    >>> count_seeds(1)
    '1 seed'
    """
    return f"{count} seed" if count == 1 else f"{count} seeds"


def count_rounds(count: float) -> str:
    """Write a number of rounds.

    >>> count_rounds(12.0)
    '12 rounds'
    """
    return "1 round" if count == 1 else f"{count:.0f} rounds"


def mean_of(values: Floats) -> float:
    """Return the mean over the seeds that have a value; NaN where none has."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


def seconds_scale(longest_s: float) -> tuple[float, str]:
    """Return divisor and unit in which a time axis reads well."""
    if longest_s >= 3 * 3600:
        return 3600.0, "h"
    if longest_s >= 600:
        return 60.0, "min"
    return (1.0, "s") if longest_s >= 1.0 else (1e-3, "ms")


def bytes_scale(most_bytes: float) -> tuple[float, str]:
    """Return divisor and unit in which an axis of bytes reads well."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if most_bytes >= 2 * 1024**power:
            return float(1024**power), unit
    return 1.0, "B"


def _percent(value: float) -> str:
    text = f"{100 * value:+.0f} %" if abs(value) >= 0.095 else f"{100 * value:+.1f} %"
    return text.replace("-", "−")


FORMS: dict[str, Form] = {
    "time": format_seconds,
    "bytes": format_bytes,
    "energy": format_joules,
    "rounds": lambda rounds: f"{rounds:.0f}",
}
"""How each cost of `airtune.report.summary` is written."""
