"""Plain sentences computed from the records: what was gained, and where the method does not help."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from airtune.report.stats import SEEDS_FOR_CLAIM, SEEDS_FOR_INTERVAL, Change
from airtune.report.study import RunSeries, Study, column
from airtune.report.summary import Against, Row, Summary, compare
from airtune.report.wording import (
    FORMS,
    count_rounds,
    count_seeds,
    format_change,
    format_gap,
    format_interval,
    format_reached,
    mean_of,
)
from airtune.units import format_seconds

_SMALL_PART = 0.15
"""A phase below this part of the straggler's round is called small."""


def headline(study: Study, summary: Summary) -> str:
    """Say in one or two sentences what the report shows."""
    row = summary.rows[study.focus]
    if study.baseline is None:
        return _alone(study, row)
    if study.target is None:
        return _at_equal_cost(study, summary)
    change = summary.against[study.focus].time
    pair = f"{study.focus} and {study.baseline}"
    if change.bound == "unknown":
        return (
            f"The time to the target of {pair} cannot be compared: in some seed both missed the "
            "target, or one took no time."
        )
    seeds = count_seeds(change.pairs)
    saving = f"{_less_or_more(change)} time to the target than {study.baseline}"
    if change.pairs < SEEDS_FOR_INTERVAL:
        return (
            f"{study.focus} needed {saving}. With {seeds} there is no interval, so this is an "
            "observation, not evidence."
        )
    if not change.is_resolved:
        return (
            f"The time to the target of {pair} does not differ significantly "
            f"({format_change(change)}, {format_interval(change)})."
        )
    if not change.is_claim:
        return (
            f"{study.focus} needed {saving} ({format_interval(change)}). This is only "
            f"an indication with {seeds}; use at least {SEEDS_FOR_CLAIM}."
        )
    return f"{study.focus} needs {saving} ({format_interval(change)})."


def limits(study: Study, summary: Summary) -> list[str]:
    """Return where the method does not help, or what its limits were, as sentences."""
    sentences = list(_missing(study))
    said = _against if study.target is not None else _worse_at_equal_cost
    for name, against in summary.against.items():
        sentences.extend(said(summary.rows[name], study, against))
    sentences.extend(_best_control(study, summary))
    sentences.extend(_limits_of_run(study.first, study, summary.rows[study.focus]))
    return sentences


def _at_equal_cost(study: Study, summary: Summary) -> str:
    """Compare by quality where no target was set before the runs."""
    row, base = summary.rows[study.focus], summary.rows[str(study.baseline)]
    against, write = summary.against[study.focus], study.metric.write
    parts = [
        f"at equal {what} {write(mean_of(ours))} against {write(mean_of(theirs))} "
        f"({format_gap(change, study.metric)})"
        for what, ours, theirs, change in (
            ("time", row.at_time, base.at_time, against.at_time),
            ("bytes", row.at_bytes, base.at_bytes, against.at_bytes),
        )
    ]
    return (
        f"No target was set before the runs. {study.label.capitalize()} of {study.focus} against "
        f"{study.baseline}, over {count_seeds(against.at_time.pairs)}: {'; '.join(parts)}."
    )


def _alone(study: Study, row: Row) -> str:
    metric = study.metric
    run = study.first
    whole = f"{count_rounds(len(run.record.rounds))} took {format_seconds(run.total(run.end_s))}"
    if study.target is None:
        return f"{study.focus}: {whole} on the virtual clock. No target was set."
    goal = f"the target ({study.label} {metric.write(study.target)})"
    seeds = "" if len(row.seeds) == 1 else f" on average over {count_seeds(len(row.seeds))}"
    if not all(cost.hit for cost in row.time):
        missed = sum(not cost.hit for cost in row.time)
        where = "" if len(row.time) == 1 else f" in {missed} of {count_seeds(len(row.time))}"
        return f"{study.focus} missed {goal}{where}: {whole} (seed {run.seed})."
    spent = format_reached(row.time, FORMS["time"])
    rounds = count_rounds(sum(cost.value for cost in row.rounds) / len(row.rounds))
    return f"{study.focus} reached {goal} after {spent} and {rounds}{seeds}."


def _less_or_more(change: Change) -> str:
    size = f"{100 * abs(change.mean):.0f} %"
    least = "" if change.bound == "equal" else "at least "
    return f"{least}{size} {'less' if change.mean < 0 else 'more'}"


def _missing(study: Study) -> Iterator[str]:
    if study.missing:
        shown = ", ".join(study.missing[:6]) + (", …" if len(study.missing) > 6 else "")
        yield f"The comparison is not complete: {shown} not run yet."
    for run in study.runs:
        if not run.is_finished:
            yield (
                f"{run.method} with seed {run.seed} has not ended: {len(run.record.rounds)} of "
                f"{run.record.header.get('rounds', '?')} rounds are recorded."
            )


def _worse_at_equal_cost(row: Row, study: Study, against: Against) -> Iterator[str]:
    for what, change in (("time", against.at_time), ("bytes", against.at_bytes)):
        worse = change.is_less if study.metric.higher else change.is_more
        if worse:
            yield (
                f"{row.method} is worse than {study.baseline} at equal {what}: "
                f"{format_gap(change, study.metric)}."
            )
        elif change.bound != "unknown" and not math.isnan(change.low) and not change.is_resolved:
            yield f"{row.method} and {study.baseline} do not differ significantly at equal {what}."


def _against(row: Row, study: Study, against: Against) -> Iterator[str]:
    name, base = row.method, study.baseline
    costs = (("time", against.time), ("traffic", against.bytes), ("energy", against.energy))
    unresolved = []
    for what, change in costs:
        if change.is_more:
            yield (
                f"{name} needs more {what} to the target than {base}: {format_change(change)} "
                f"({format_interval(change)})."
            )
        elif change.bound != "unknown" and not math.isnan(change.low) and not change.is_less:
            unresolved.append(f"{what} ({format_change(change)})")
    if unresolved:
        yield f"{name} and {base} do not differ significantly in {' or '.join(unresolved)}."
    if row.time and not any(cost.hit for cost in row.time):
        yield f"{name} never reached the target."


def _best_control(study: Study, summary: Summary) -> Iterator[str]:
    """Compare the focus with the fastest of the others, which may be a cheap control."""
    rows = summary.rows
    others = [row for name, row in rows.items() if name not in (study.focus, study.baseline)]
    arrived = [row for row in others if row.time and all(cost.hit for cost in row.time)]
    if not arrived:
        return
    rival = min(arrived, key=lambda row: sum(cost.value for cost in row.time) / len(row.time))
    change = compare(rows[study.focus], rival).time
    if change.bound == "unknown" or change.is_less:
        return
    verb = "is slower than" if change.is_more else "is not significantly faster than"
    yield (
        f"{study.focus} {verb} the fastest of the other methods, {rival.method}: "
        f"{format_change(change)} time to the target ({format_interval(change)})."
    )


def _limits_of_run(run: RunSeries, study: Study, row: Row) -> Iterator[str]:
    if not run.record.rounds:
        yield f"{run.method} recorded no round."
        return
    checks: tuple[Callable[[RunSeries], Iterator[str]], ...] = (
        _pruning,
        _phases,
        _losses,
        _forecast,
        _memory,
        _staleness,
    )
    for check in checks:
        yield from check(run)
    metric = study.metric
    worst, best = mean_of(row.worst), mean_of(row.final)
    if math.isfinite(worst) and math.isfinite(best):
        yield (
            f"The worst tenth of the devices ended at {metric.label} {metric.write(worst)}; the weighted "
            f"mean of all devices is {metric.write(best)}."
        )


def _pruning(run: RunSeries) -> Iterator[str]:
    devices = run.record.devices
    if devices["cut"].any():  # a method that cuts does not set out to prune
        return
    if devices["pruned"].size and not devices["pruned"].any():
        yield f"{run.method} pruned nothing in any round, so none of its gain comes from pruning."


def _staleness(run: RunSeries) -> Iterator[str]:
    """Say how old the updates of asynchronous rounds were."""
    ages = [
        age
        for record in run.record.rounds
        for age in (record.get("buffered") or {}).get("staleness", {}).values()
    ]
    if ages:
        stale = sum(age > 0 for age in ages) / len(ages)
        yield (
            f"Rounds were asynchronous: {stale:.0%} of the updates began in an earlier round, at most "
            f"{max(ages)} rounds earlier, and got a smaller weight."
        )


def _phases(run: RunSeries) -> Iterator[str]:
    """Say which phase cannot save time because the stragglers hardly spend any on it."""
    devices = run.record.devices
    lasts = straggler_rows(run)
    phases = {
        name: float(np.nansum(devices[f"{name}_s"][lasts]))
        for name in ("download", "compute", "upload")
    }
    total = sum(phases.values())
    if total <= 0.0:
        return
    advice = {
        "compute": "pruning can save little time here",
        "upload": "bandwidth allocation and compression can save little time here",
    }
    for name, sentence in advice.items():
        part = phases[name] / total
        if part < _SMALL_PART:
            yield f"{name.capitalize()} is {100 * part:.0f} % of the slowest devices' time: {sentence}."
    if phases["download"] / total > 0.5:
        part = 100 * phases["download"] / total
        yield f"Download is {part:.0f} % of the slowest devices' time; no decision here shortens it."


def straggler_rows(run: RunSeries) -> list[int]:
    """Return the row of `devices.csv` that finished last in each round."""
    devices = run.record.devices
    finish = np.where(devices["status"] == "ok", devices["finish_s"], np.nan)
    rows = []
    for number in np.unique(devices["round"]):
        places = np.flatnonzero((devices["round"] == number) & np.isfinite(finish))
        if places.size:
            rows.append(int(places[np.argmax(finish[places])]))
    return rows


def _losses(run: RunSeries) -> Iterator[str]:
    status = run.record.devices["status"]
    is_told = run.record.devices["local_steps"] > 0
    words = {
        "late": "came after the deadline",
        "refused": "were refused as invalid",
        "failed": "failed on the device",
        "absent": "never came, because the device was away",
    }
    for name, what in words.items():
        count = int(np.count_nonzero(is_told & (status == name)))
        if count:
            part = 100 * count / status.size
            yield f"{count} of {status.size} updates ({part:.1f} %) {what}."
    if not is_told.all():
        count = int(np.count_nonzero(~is_told))
        part = 100 * count / status.size
        yield (
            f"{count} of {status.size} times ({part:.1f} %) a device was left out because of a limit in "
            "the recipe (limits); devices.csv says which."
        )


def _forecast(run: RunSeries) -> Iterator[str]:
    planned = column(run.record.rounds, "predicted_s")
    took = column(run.record.rounds, "round_s")
    known = np.isfinite(planned) & (took > 0.0)
    if known.any():
        error = float(np.median(np.abs(planned[known] / took[known] - 1.0)))
        if error > 0.1:
            yield (
                f"Planned and actual round time differ by {100 * error:.0f} % (median): the links "
                "changed after the plan was made."
            )


def _memory(run: RunSeries) -> Iterator[str]:
    devices = run.record.devices
    over = devices["peak_bytes"] > devices["memory_bytes"]
    if over.any():
        count = len(set(devices["device"][over].tolist()))
        yield f"{count} devices exceeded their memory limit in at least one round."
