"""From levels and shares to a round plan with one reason a device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from airtune.cost import Prediction, predict
from airtune.methods.levels import ladder_of
from airtune.methods.seen import Seen
from airtune.plan import Assignments, Floats, Ints, Observation, Problem, RoundPlan, Solution
from airtune.units import format_seconds


def level_plan(
    problem: Problem,
    observation: Observation,
    seen: Seen,
    level: Ints,
    share: Floats,
    *,
    why: str,
    solution: Solution | None = None,
    notes: Mapping[str, float] | None = None,
) -> RoundPlan:
    """Return the plan that puts every device on a level of the ladder with a share of its link.

    Args:
        problem: what stands before the first round.
        observation: this round's.
        seen: its devices, n of them.
        level: index into the ladder, shape (n,).
        share: fraction of the device's link, shape (n,).
        why: the rule in a few words; it stands in every device's reason.
        solution: how the optimisation ended.
        notes: figures for the record.
    """
    steps, workload = ladder_of(problem), problem.workload
    count = seen.device.shape[0]
    assignments = Assignments(
        device=seen.device,
        prune_heads=steps.prune_heads[level],
        prune_ffn=steps.prune_ffn[level],
        rank=np.full(count, workload.rank, np.int64),
        share=share,
        local_steps=np.full(count, workload.local_steps, np.int64),
        cut=np.zeros(count, np.int64),
        codec_index=np.zeros(count, np.int64),
    )
    expected = predict(
        problem, assignments, links=seen.links, flops_per_s=_fleet_speed(observation)
    )
    reachable = expected.finish_s[np.isfinite(expected.finish_s)]
    round_s = float(np.max(reachable, initial=0.0))
    figures = {"mean_pruned": float(np.sum(seen.weight * steps.pruned[level])), **(notes or {})}
    return RoundPlan(
        round=observation.round,
        assignments=assignments,
        reasons=_reasons(seen, steps.pruned[level], share, expected, why),
        predicted_s=round_s if reachable.size else float("nan"),
        deadline_s=problem.deadline_s,
        solution=solution,
        notes=figures,
    )


def spread(seen: Seen, level: Ints, share: Floats, idle_level: Ints) -> tuple[Ints, Floats]:
    """Return levels and shares of all n devices from those of the able ones.

    A device without any rate in this slot gets the lightest level it may use and no share: its
    method divides the link anew in a later slot, when the device can send again.
    """
    all_levels = idle_level.copy()
    all_levels[seen.able] = level
    return all_levels, seen.shares(share)


def _fleet_speed(observation: Observation) -> Floats:
    speed = observation.flops_per_s
    return np.full(observation.available.shape, np.nan) if speed is None else speed


def _reasons(
    seen: Seen, pruned: Floats, share: Floats, expected: Prediction, why: str
) -> tuple[str, ...]:
    slowest = float(np.max(expected.finish_s[np.isfinite(expected.finish_s)], initial=0.0))
    link = [spec.name for spec in seen.links.specs]
    columns = zip(
        seen.names,
        pruned,
        share,
        seen.links.link[seen.device],
        expected.compute_s,
        expected.upload_s,
        expected.finish_s,
        strict=True,
    )
    lines = []
    for name, removed, part, index, compute_s, upload_s, finish_s in columns:
        if not np.isfinite(finish_s):
            lines.append(
                f"{name}: no rate in this slot; gets a share of {link[index]} when its rate is above 0"
            )
            continue
        early_s = slowest - finish_s
        end = (
            "finishes with the slowest"
            if early_s <= 1e-3 * slowest
            else f"finishes {format_seconds(early_s)} before the slowest"
        )
        lines.append(
            f"{name}: prunes {removed:.1%}, gets {part:.2%} of {link[index]} ({why}); computes "
            f"{format_seconds(compute_s)}, sends {format_seconds(upload_s)}, {end}"
        )
    return tuple(lines)
