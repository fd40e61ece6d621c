"""The sentences of a plan: what was assumed, what binds, what will not go."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from airtune.cost import Ladder
from airtune.fleet import Fleet
from airtune.fleet.plausible import implausible
from airtune.plan import Floats, Problem, PrunedRounds
from airtune.planner.control import control_lines
from airtune.planner.extra import cap_lines, held_blocks, holding_lines, staging_lines
from airtune.planner.lengths import length_line
from airtune.planner.sample import Sampled
from airtune.planner.setting import PlanSetting
from airtune.report.wording import format_joules
from airtune.run import Chosen, tables_of
from airtune.units import format_bytes, format_seconds


def assumptions(
    setting: PlanSetting, sampled: Sampled, staged: Floats, stage_s: Floats
) -> list[str]:
    """Return what a plan takes for granted.

    Args:
        setting: what is planned.
        sampled: the rounds that were looked at.
        staged: bytes of the base that each device fetches, shape (devices,).
        stage_s: what that takes each, shape (devices,).
    """
    problem, fleet, middle = setting.problem, setting.fleet, sampled.middle
    return [
        *_unmeasured(problem, setting.chosen),
        *control_lines(setting.chosen),
        *fleet.assumptions,
        "every device holds the same number of rows",
        length_line(setting.recipe, setting.found),
        *_looked_at(fleet, sampled),
        *(
            [
                f"a random {sampled.part:.3g} of the devices takes part in each round "
                "(fleet.participation); a device's figures are for a round in which it takes part"
            ]
            if sampled.part < 1.0
            else []
        ),
        *(
            [
                f"each round samples {sampled.takes_part.mean():.0%} of the devices, slow devices less "
                "often; a device's figures are for a round in which it takes part, and the number of "
                "rounds is not increased for sampling"
            ]
            if setting.chosen.method.may_sample
            else []
        ),
        *(
            [
                f"a round ends after {setting.recipe.train.async_buffer} updates (train.async_buffer); its "
                "time is a mean, with every device restarting as soon as it is done and all devices "
                "sharing the link"
            ]
            if sampled.arrives < 1.0
            else []
        ),
        *(
            ["no sample is used twice, so caching its activations saves nothing"]
            if problem.work.device_frozen
            else []
        ),
        *holding_lines(
            fleet.names, held_blocks(problem, fleet, setting.chosen), problem.shape.blocks
        ),
        *staging_lines(fleet.names, staged, stage_s),
        *cap_lines(
            fleet.names,
            middle["upload_bytes"] + middle["download_bytes"],
            problem,
            staged,
            part=sampled.part,
        ),
        *_beyond(
            middle["finish_s"],
            problem.deadline_s,
            fleet.names,
            said="miss the deadline of",
            form=format_seconds,
            key="deadline_s",
        ),
        *_beyond(
            middle["energy_j"],
            problem.joules_per_round,
            fleet.names,
            said="use more energy a round than",
            form=format_joules,
            key="limits.joules_per_round",
        ),
    ]


def warnings(setting: PlanSetting, sampled: Sampled) -> list[str]:
    """Return what keeps a run from going as planned, and numbers that look wrong."""
    said = implausible(setting.fleet)
    has = setting.problem.server_memory_bytes
    if sampled.server_peak_bytes > has:
        said.append(
            f"the server has too little memory: the split devices need "
            f"{format_bytes(sampled.server_peak_bytes)} there, it has {format_bytes(has)}; a run "
            "would refuse all of them"
        )
    said.extend(_outages(setting.fleet.names, sampled))
    middle = sampled.middle
    short = np.flatnonzero(middle["peak_bytes"] > setting.fleet.memory_bytes)
    if short.size:
        least = int(short[np.argmin(setting.fleet.memory_bytes[short])])
        said.append(
            f"{short.size} of {len(setting.fleet)} devices have too little memory to train: "
            f"{setting.fleet.names[least]} needs {format_bytes(float(middle['peak_bytes'][least]))} "
            f"and has {format_bytes(float(setting.fleet.memory_bytes[least]))}; the figures leave them out"
            if short.size < len(setting.fleet)
            else f"no device can train: each lacks the memory for what {setting.chosen.label} plans"
        )
    return said


def _outages(names: Sequence[str], sampled: Sampled) -> list[str]:
    """Say whose links carry nothing in some rounds, for how long, and what the plan's times hold."""
    outage_s = np.nan_to_num(sampled.columns["outage_s"], posinf=np.inf)
    lines = []
    never = np.flatnonzero(np.isinf(outage_s).any(axis=0))
    if never.size:
        lines.append(
            f"{never.size} of {len(names)} devices ({names[never[0]]}, for example) have an uplink or "
            "downlink that never carries data; the figures leave them out"
        )
    waits = np.where(np.isinf(outage_s), 0.0, outage_s)
    often = np.count_nonzero(waits, axis=0)
    if often.any():
        worst = int(np.argmax(often))
        lines.append(
            f"{np.count_nonzero(often)} of {len(names)} devices have a link outage in some of the "
            f"{len(waits)} sampled rounds, {names[worst]} in {often[worst]}. A run waits for them, at "
            f"most {format_seconds(float(waits.max()))} in these rounds; the round time includes the "
            f"mean wait of {format_seconds(float(sampled.waited_s.mean()))}. Outages that begin within "
            "a round are not included"
        )
    return lines


def _looked_at(fleet: Fleet, sampled: Sampled) -> list[str]:
    """Say at which rounds, and at which moments of measured traces, a plan looks."""
    drawn = len(sampled.columns["pruned"])
    lines = [
        f"links are sampled in {drawn} rounds of the run; figures are medians over these rounds"
    ]
    if fleet.trace_s:
        lines.append(
            f"measured traces are sampled at {drawn} moments, spread over the longest trace "
            f"({format_seconds(fleet.trace_s)})"
        )
    return lines


def feasible(levels: Ladder, memory_bytes: float) -> str:
    """Return in words which pruning levels a memory leaves."""
    fits = np.flatnonzero(levels.peak_bytes <= memory_bytes)
    if not len(fits):
        return "nothing fits"
    if fits[0] == 0:
        return f"any, 0-{levels.pruned[-1]:.0%} pruned"
    return f"{levels.pruned[fits[0]]:.0%} pruned or more"


def binding(fleet: Fleet, sampled: Sampled) -> str:
    """Return who finishes last most often, and which part of its round is the longest."""
    if not sampled.last:
        return "no device"
    last, phase = _last(sampled)
    return f"{fleet.names[last]}'s {phase}"


def straggler(fleet: Fleet, sampled: Sampled, *, is_control: bool) -> str:
    """Return the same in a sentence, with how often that is."""
    if not sampled.last:
        return "no device trains" if is_control else "no device was available"
    last, phase = _last(sampled)
    return (
        f"{fleet.names[last]} finishes last in {sampled.last.count(last)} of {len(sampled.last)} "
        f"rounds, mostly because of its {phase}"
    )


def _last(sampled: Sampled) -> tuple[int, str]:
    index, middle = int(np.bincount(sampled.last).argmax()), sampled.middle
    phases = {name: float(middle[f"{name}_s"][index]) for name in ("download", "compute", "upload")}
    return index, max(phases, key=lambda name: phases[name])


def rounds_source(measured: Sequence[PrunedRounds]) -> str:
    """Return where the number of rounds came from."""
    said = "train.rounds of the recipe; the rounds to a target are only known after training"
    if len(measured) < 2:
        return said
    costs = ", ".join(
        f"{np.exp(row.log_rounds):.2f} times at {row.pruned:.0%} pruned" for row in measured[1:]
    )
    return f"{said}; by the calibration, pruning needs more rounds: {costs}"


def _beyond(
    column: Floats,
    limit: float | None,
    names: Sequence[str],
    *,
    said: str,
    form: Callable[[float], str],
    key: str,
) -> list[str]:
    """Say so where devices are mostly above a limit, and the least that one needs if all are."""
    asked = column[~np.isnan(column)]
    over = 0 if limit is None else int(np.sum(asked > limit))
    if limit is None or not over:
        return []
    line = f"{over} of {asked.size} devices {said} {form(limit)} ({key})"
    if over < asked.size:
        return [line]
    least = int(np.nanargmin(column))
    return [
        f"{line}; no round can train. The lowest value is {form(float(column[least]))} "
        f"({names[least]}): raise {key} above it"
    ]


_ASSUMED = {
    "pruning": ("pruning", "devices are pruned only if memory requires it (or set method.budget)"),
    "codecs": ("activation codecs", "activations are sent uncompressed (or set method.codec)"),
    "ranks": ("smaller ranks", "all devices use the full rank"),
    "cut": ("splitting the model", "split devices count as much as the others"),
    "steps": ("other local steps", "all devices take train.local_steps"),
    "uploads": ("update compression", "all devices use the recipe's upload codec"),
}  # fmt: skip
"""What a plan does where a table that the method wants was not measured."""


def _unmeasured(problem: Problem, chosen: Chosen) -> list[str]:
    """Say what the method does without, where no run has measured what it wants to know."""
    known = frozenset() if problem.measurements is None else problem.measurements.measured
    missing = [_ASSUMED[name] for name in tables_of(chosen) if name not in known]
    lines = [f"cost of {what} not measured: {so}" for what, so in missing]
    hint = "airtune calibrate or a first run measures these costs for this model and data"
    return [*lines, hint] if lines else []


def next_to(quantile: float | None) -> str:
    """Return of which rounds a comparison is; empty for the median, which is not said.

    >>> next_to(0.95)
    'rounds near the 95% quantile of round time'
    """
    return "" if quantile is None else f"rounds near the {quantile:.0%} quantile of round time"
