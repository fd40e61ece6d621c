"""What came of a round, from its timing and the outcomes of local work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from airtune.cost import energy_j
from airtune.engine.timing import Timing
from airtune.model.state import Update
from airtune.plan import Floats, Problem, Results, RoundPlan
from airtune.work.jobs import Outcome


def in_time(timing: Timing) -> list[int]:
    """Return the rows of the plan whose update counts as far as time tells."""
    return [int(index) for index in np.flatnonzero(timing.status == "ok")]


def under(prefix: str, arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of one part of an engine, without its prefix."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def results_of(
    problem: Problem,
    plan: RoundPlan,
    timing: Timing,
    status: NDArray[np.str_],
    outcomes: Mapping[int, Outcome],
    *,
    predicted_s: Floats | None = None,
) -> Results:
    """Return what the method learns: columns over the devices of the plan.

    Args:
        problem: unmasked: with the devices' powers.
        plan: n devices.
        timing: of the round.
        status: after local work, (n,).
        outcomes: by row of the plan, of those that came in time.
        predicted_s: when each was predicted to finish, (n,).
    """
    count = len(plan.assignments)
    first, last = np.full(count, np.nan), np.full(count, np.nan)
    importance, samples = np.full(count, np.nan), np.zeros(count, np.int64)
    rank_left = plan.assignments.rank.copy()
    for index, outcome in outcomes.items():
        first[index], last[index] = outcome.loss_first, outcome.loss_last
        samples[index], importance[index] = outcome.samples, outcome.importance
        rank_left[index] = outcome.rank_left or rank_left[index]
    energy = energy_j(
        problem,
        plan.assignments.device,
        compute_s=np.nan_to_num(timing.compute_s),
        upload_s=np.nan_to_num(timing.upload_s),
        download_s=np.nan_to_num(timing.download_s),
        round_s=timing.end_s,
    )
    return Results(
        **timing.round_columns(),
        device=plan.assignments.device,
        status=status,
        loss_first=first,
        loss_last=last,
        samples=samples,
        energy_j=energy,
        importance=importance,
        rank_left=rank_left,
        done=plan.assignments,
        server_s=timing.server_s,
        step_up_bytes=timing.step_up_bytes,
        step_down_bytes=timing.step_down_bytes,
        predicted_s=predicted_s,
    )


def updates_of(outcomes: Mapping[int, Outcome]) -> tuple[Update, ...]:
    """Return the updates that count, in the order of the plan."""
    updates = (outcomes[index].update for index in sorted(outcomes))
    return tuple(update for update in updates if update is not None)


def faults_of(timing: Timing, outcomes: Mapping[int, Outcome]) -> tuple[str, ...]:
    """Return why each device's update does not count, empty where it does."""
    faults: Sequence[str] = timing.faults
    return tuple(
        outcomes[index].reason if index in outcomes else fault for index, fault in enumerate(faults)
    )
