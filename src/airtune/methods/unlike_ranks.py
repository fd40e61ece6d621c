"""Unlike ranks on the whole model: what HETLoRA, FlexLoRA and FLoRA decide.

The papers give a device a rank by what it can do and leave open how that is known. Here it is what
a server sees: seconds a device took for each FLOP, slowest the smallest rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.errors import MethodError
from airtune.methods.blind import equal_links
from airtune.methods.seen import available
from airtune.methods.sparsity import check_min_rank, ranks_between
from airtune.plan import (
    Bools,
    Floats,
    Ints,
    LinkState,
    Need,
    Observation,
    Problem,
    Results,
    RoundPlan,
    State,
)


@dataclass(frozen=True, slots=True)
class UnlikeRanks:
    """Ranks from `min_rank` to the recipe's `lora.r` by observed speed; nothing is pruned.

    A device not seen yet gets the middle rank. Where the local work prunes ranks (HETLoRA), a
    device never gets more than it has left.
    """

    min_rank: int = 2
    """Smallest rank; the largest is lora.r."""
    needs: frozenset[Need] = frozenset()

    def __post_init__(self) -> None:
        check_min_rank(self.min_rank)

    def init(self, problem: Problem) -> State:
        """Return what is seen of devices and the ranks they have left."""
        most, count = problem.workload.rank, len(problem.devices)
        return {"unit_s": np.full(count, np.nan), "rank_left": np.full(count, most, np.int64)}

    def plan(
        self, problem: Problem, state: State, observation: Observation
    ) -> tuple[RoundPlan, State]:
        """Give ranks by the order of the observed times."""
        unit_s, left = np.asarray(state["unit_s"]), np.asarray(state["rank_left"])
        if unit_s.shape != (len(problem.devices),):
            raise MethodError(
                f"the state is of a fleet of {unit_s.shape[0]} devices, this one has "
                f"{len(problem.devices)}; resume with the fleet the run was started with"
            )
        device, devices = available(observation), problem.devices
        ranks = ranks_between(self.min_rank, problem.workload.rank, _standing(unit_s))
        rank = np.minimum(ranks, left)[device]
        nothing = np.zeros(device.shape)
        assignments = equal_links(
            problem, device, prune_heads=nothing, prune_ffn=nothing, rank=rank
        )
        return RoundPlan(
            observation.round,
            assignments,
            _reasons(devices.names, device, rank, unit_s),
            deadline_s=problem.deadline_s,
            notes={"mean_rank": float(np.mean(rank))},
        ), state

    def divide(
        self,
        problem: Problem,
        state: State,
        plan: RoundPlan,
        links: LinkState,
        remaining_bytes: Floats,
    ) -> Floats:
        """Keep the equal shares."""
        return plan.assignments.share

    def learn(self, problem: Problem, state: State, results: Results) -> State:
        """Remember times and what ranks are left."""
        unit_s, left = np.array(state["unit_s"]), np.array(state["rank_left"])
        came = (results.status == "ok") & np.isfinite(results.finish_s)
        who = results.device[came]
        unit_s[who] = seconds_a_flop(unit_s[who], results, came)
        if results.rank_left is not None:
            left[who] = np.minimum(left[who], results.rank_left[came])
        return {"unit_s": unit_s, "rank_left": left}


def seconds_a_flop(before: Floats, results: Results, came: Bools) -> Floats:
    """Return the smoothed seconds a unit of work, of the devices that came.

    Half of the past stays: a device that changes its mode is seen as another within two rounds.
    """
    flops = np.maximum(results.flops[came], 1.0)
    fresh = results.finish_s[came] / flops
    return np.where(np.isfinite(before), 0.5 * before + 0.5 * fresh, fresh)


def _standing(unit_s: Floats) -> Floats:
    """Return 0 for the slowest to 1 for the fastest, 0.5 where nothing is known."""
    standing = np.full(unit_s.shape, 0.5)
    known = np.flatnonzero(np.isfinite(unit_s))
    if known.size > 1:
        order = np.argsort(np.argsort(-unit_s[known], kind="stable"), kind="stable")
        standing[known] = order / (known.size - 1)
    return standing


def _reasons(names: tuple[str, ...], device: Ints, rank: Ints, unit_s: Floats) -> tuple[str, ...]:
    return tuple(
        f"{names[index]}: rank {size}, the whole model; "
        + (
            f"took {1e9 * unit_s[index]:.3g} s per GFLOP"
            if np.isfinite(unit_s[index])
            else "not seen yet"
        )
        for index, size in zip(device, rank, strict=True)
    )
