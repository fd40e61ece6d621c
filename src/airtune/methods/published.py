"""FedSpine as its paper has it: pruning and rank of each device by a bandit over boxes (S-UCB).

An arm is a point (ratio, log2 rank) of the unit square. The ratio is how much of the pruning that
a device still has before it is done now; a device is never below the cubic schedule, so that all
end exactly at the same sparsity, and never comes back from where it is. What a round was worth
(`reward`) teaches a smooth upper confidence bound over a square that refines itself
(`airtune.solve.bandit`); devices that behave alike, by the seconds they took for each FLOP, learn
together. The method asks for neither capability nor channel.

Source: Efficient Deployment of Large Language Models on Resource-constrained Devices, arXiv
2501.02438; the reward, the bound and the grouping are reconstructed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from airtune.errors import MethodError, RecipeError
from airtune.keys import generator
from airtune.methods.blind import equal_links
from airtune.methods.reward import RewardWeights, rewards
from airtune.methods.seen import available
from airtune.methods.sparsity import (
    LEVELS,
    PruningTarget,
    Schedule,
    Structures,
    check_min_rank,
    check_sparsity,
    levels_of,
    ranks_between,
    schedule_of,
    schedule_round,
)
from airtune.methods.unlike_ranks import seconds_a_flop
from airtune.plan import (
    Bools,
    Floats,
    Ints,
    LinkState,
    Need,
    Note,
    Observation,
    Problem,
    Results,
    RoundPlan,
    State,
)
from airtune.solve.bandit import Bandit, BanditSettings, behave_alike, choose, learn, start

Learner = Literal["pooled", "private", "random", "fixed", "ratio-only", "rank-only"]

_NOTHING = -1
"""Box of a device that plays none."""


@dataclass(frozen=True, slots=True)
class PublishedFedSpine:
    """The decider of `form: published`; the learners other than `pooled` are its controls."""

    sparsity: float = 0.5
    """Fraction of the blocks' weights that is gone at the end, to the nearest whole structures, the
    same on every device."""
    structures: Structures = "auto"
    """What is removed; auto = heads too where the family's plain config can say so."""
    learner: Learner = "pooled"
    """Who learns: devices that behave alike together, each alone, or nobody (random, fixed); or only
    the ratio, or only the rank, is learnt."""
    groups: int = 3
    """How many kinds of behaviour are told apart."""
    min_rank: int = 2
    """Smallest rank; the largest is lora.r."""
    fixed_ratio: float = 0.5
    """Ratio of the learners that do not choose one."""
    fixed_rank: int = 0
    """Rank of the learners that do not choose one; 0 = lora.r."""
    warmup: float = 0.0
    """Part of the rounds before the first pruning."""
    cooldown: float = 0.5
    """Part of the rounds that only tune at the end."""
    prune_every: int = 20
    """Local iterations between prunings."""
    explore: float = 0.05
    """Scale of the confidence bound."""
    discount: float = 0.98
    """What a trial counts a round later."""
    over: Literal["layers", "model"] = "layers"
    """Where structures compete: in each block, which plain tools can load, or over the model."""
    own_importance: float = 0.0
    """Weight of a device's own scores against the pooled ones when it prunes."""
    needs: frozenset[Need] = frozenset()

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity, self.warmup, self.cooldown, self.prune_every)
        for name, low, high in (("fixed_ratio", 0.0, 1.0), ("own_importance", 0.0, 1.0)):
            if not low <= getattr(self, name) <= high:
                raise RecipeError(
                    f"{name} must be in [{low:g}, {high:g}], got {getattr(self, name):g}"
                )
        if self.groups < 1:
            raise RecipeError(f"groups must be at least 1, got {self.groups}")
        check_min_rank(self.min_rank)
        if self.fixed_rank and self.fixed_rank < self.min_rank:
            raise RecipeError(
                f"fixed_rank must be 0 or at least min_rank, which is {self.min_rank}, got "
                f"{self.fixed_rank}"
            )
        if not 0.0 <= self.explore < np.inf:
            raise RecipeError(f"explore must be at least 0 and finite, got {self.explore:g}")
        if not 0.0 < self.discount <= 1.0:
            raise RecipeError(f"discount must be above 0 and at most 1, got {self.discount:g}")

    @property
    def target(self) -> PruningTarget:
        """Where pruning ends."""
        return PruningTarget(self.sparsity, self.structures)

    def init(self, problem: Problem) -> State:
        """Return the state that knows nothing.

        Raises:
            RecipeError: if the sparsity is outside what the model allows.
        """
        levels_of(problem, self.target)
        count = len(problem.devices)
        bandit = start(count if self.learner == "private" else self.groups)
        return {
            **_arrays(bandit),
            "level": np.zeros(count, np.int64),
            "told": np.zeros(count, np.int64),
            "unit_s": np.full(count, np.nan),
            "box": np.full(count, _NOTHING, np.int64),
            "group": np.zeros(count, np.int64),
            "done": np.full(count, np.nan),
            "reward_mean": float("nan"),
        }

    def plan(
        self, problem: Problem, state: State, observation: Observation
    ) -> tuple[RoundPlan, State]:
        """Have every available device play a point, and tell it where that leads."""
        check_fleet(problem, np.asarray(state["level"]).shape[0])
        device, schedule = available(observation), self._schedule(problem)
        group = self._groups(np.asarray(state["unit_s"]))
        box, point = self._points(problem, state, group, device, observation.round)
        level, floor = (
            np.asarray(state["level"])[device],
            schedule.floor(schedule_round(problem, observation)),
        )
        going_on = np.floor(point[:, 0] * (LEVELS - level) + 0.5).astype(np.int64)
        is_due = schedule.is_due(observation.round)
        told = np.clip(np.maximum(level + (going_on if is_due else 0), floor), level, LEVELS)
        has_choice = is_due & (np.maximum(level, floor) < LEVELS)
        done = np.where(has_choice, (told - level) / np.maximum(LEVELS - level, 1), np.nan)
        after = dict(state)
        after |= {
            "told": _put(state["told"], device, told),
            "group": group,
            "done": _put(state["done"], device, done),
            "box": _put(np.full(len(problem.devices), _NOTHING, np.int64), device, box),
        }
        rank = self._ranks(problem, point[:, 1])
        return self._assembled(problem, observation, after, told=told, rank=rank), after

    def divide(
        self,
        problem: Problem,
        state: State,
        plan: RoundPlan,
        links: LinkState,
        remaining_bytes: Floats,
    ) -> Floats:
        """Keep the equal shares: the method does not see the channel."""
        return plan.assignments.share

    def learn(self, problem: Problem, state: State, results: Results) -> State:
        """Credit the points that were played: nothing for what came late or not whole.

        A device that never answered says nothing.
        """
        check_fleet(problem, np.asarray(state["level"]).shape[0])
        who = results.device
        came = (results.status == "ok") & np.isfinite(results.finish_s)
        level, unit_s = np.array(state["level"]), np.array(state["unit_s"])
        level[who[came]] = np.asarray(state["told"])[who[came]]
        unit_s[who[came]] = seconds_a_flop(unit_s[who[came]], results, came)
        gained = np.zeros(len(results.device))
        gained[came] = rewards(results, came, np.asarray(state["done"])[who], RewardWeights())
        box, reward = np.asarray(state["box"]).copy(), np.zeros(len(problem.devices))
        reward[who] = gained
        box[who[results.status == "absent"]] = _NOTHING
        bandit = learn(
            _bandit(state), np.asarray(state["group"]), self._dials, box=box, reward=reward
        )
        return {
            **state,
            **_arrays(bandit),
            "level": level,
            "unit_s": unit_s,
            "reward_mean": float(np.mean(gained[came])) if came.any() else float("nan"),
        }

    @property
    def _dials(self) -> BanditSettings:
        return BanditSettings(explore=self.explore, discount=self.discount)

    def _schedule(self, problem: Problem) -> Schedule:
        return schedule_of(
            problem, warmup=self.warmup, cooldown=self.cooldown, prune_every=self.prune_every
        )

    def _groups(self, unit_s: Floats) -> Ints:
        """Return whose statistics each device shares."""
        if self.learner == "private":
            return np.arange(unit_s.size, dtype=np.int64)
        return behave_alike(unit_s, self.groups)

    def _points(
        self, problem: Problem, state: State, group: Ints, device: Ints, round: int
    ) -> tuple[Ints, Floats]:
        """Return box and point of each available device."""
        draws = generator(problem.seed, "fedspine", round)
        fixed = np.array([self.fixed_ratio, self._fixed_part(problem)])
        if self.learner == "random":
            return np.full(device.shape, _NOTHING), draws.random((device.size, 2))
        if self.learner == "fixed":
            return np.full(device.shape, _NOTHING), np.tile(fixed, (device.size, 1))
        bandit = _bandit(state)
        box = choose(
            bandit,
            group[device],
            self._dials,
            generator=draws,
            allowed=np.tile(self._boxes(bandit, fixed), (device.size, 1)),
        )
        point = bandit.centre[box].copy()
        if self.learner == "ratio-only":
            point[:, 1] = fixed[1]
        elif self.learner == "rank-only":
            point[:, 0] = fixed[0]
        return box, point

    def _boxes(self, bandit: Bandit, fixed: Floats) -> Bools:
        """Return which boxes may be played: those that hold what the learner does not choose."""
        if self.learner not in ("ratio-only", "rank-only"):
            return np.ones(bandit.depth.size, np.bool_)
        axis = 1 if self.learner == "ratio-only" else 0
        value = min(fixed[axis], 1.0 - 1e-9)
        return np.asarray((bandit.low[:, axis] <= value) & (value < bandit.high[:, axis]))

    def _fixed_part(self, problem: Problem) -> float:
        """Return where the fixed rank is between the smallest and the largest, in [0, 1]."""
        most = problem.workload.rank
        if most == self.min_rank:
            return 1.0
        return float(
            np.log2((self.fixed_rank or most) / self.min_rank) / np.log2(most / self.min_rank)
        )

    def _ranks(self, problem: Problem, part: Floats) -> Ints:
        if self.learner in ("fixed", "ratio-only"):
            return np.full(part.shape, self.fixed_rank or problem.workload.rank, np.int64)
        return ranks_between(self.min_rank, problem.workload.rank, part)

    def _assembled(
        self, problem: Problem, observation: Observation, state: State, *, told: Ints, rank: Ints
    ) -> RoundPlan:
        levels = levels_of(problem, self.target)
        device, pruned = available(observation), levels.pruned[told]
        floor = self._schedule(problem).floor(observation.round)
        notes: dict[str, Note] = {
            "mean_pruned": float(np.mean(pruned)),
            "mean_rank": float(np.mean(rank)),
            "least_pruned": float(levels.pruned[floor]),
        }
        if self.learner not in ("random", "fixed"):
            notes |= self._tree(state, device)
        before = float(np.asarray(state["reward_mean"]))
        if np.isfinite(before):
            notes["reward_before"] = before
        assignments = equal_links(
            problem,
            device,
            prune_heads=levels.prune_heads[told],
            prune_ffn=levels.prune_ffn[told],
            rank=rank,
        )
        return RoundPlan(
            observation.round,
            assignments,
            self._reasons(problem, state, device, pruned=pruned, rank=rank),
            deadline_s=problem.deadline_s,
            notes=notes,
        )

    def _tree(self, state: State, device: Ints) -> dict[str, Note]:
        """Return what the choices rest on, for the record.

        `tree`: a row a box, `low` and `high` of the ratio, `low` and `high` of the rank's position,
        then trials and mean reward of each group; private bandits are added up. `played`: a row a
        device, with its group and the row of its box.
        """
        bandit, group = _bandit(state), np.asarray(state["group"])[device]
        trials, reward = bandit.trials, bandit.reward
        if self.learner == "private":
            trials, reward = trials.sum(axis=0)[None], reward.sum(axis=0)[None]
            group = np.zeros_like(group)
        paid = reward / np.maximum(trials, 1e-12)
        known = np.stack([trials, paid], axis=-1).transpose(1, 0, 2).reshape(trials.shape[1], -1)
        sides = np.stack([bandit.low, bandit.high], axis=-1).reshape(-1, 4)
        rows = np.round(np.hstack([sides, known]), 4).tolist()
        box = np.asarray(state["box"])[device]
        return {
            "boxes": float(bandit.depth.size),
            "tree": tuple(map(tuple, rows)),
            "played": tuple(zip(device.tolist(), group.tolist(), box.tolist(), strict=True)),
        }

    def _reasons(
        self, problem: Problem, state: State, device: Ints, *, pruned: Floats, rank: Ints
    ) -> tuple[str, ...]:
        """Return one line a device: where it stands and what the choice rests on."""
        bandit, group = _bandit(state), np.asarray(state["group"])
        box, done = np.asarray(state["box"]), np.asarray(state["done"])
        lines = []
        for index, part, size in zip(device, pruned, rank, strict=True):
            what = f"{problem.devices.names[index]}: prunes {part:.1%}"
            what += f" ({done[index]:.0%} of what was left)" if done[index] < 1.0 else ""
            why = self._why(bandit, group[index], box[index], prunes=bool(np.isfinite(done[index])))
            lines.append(f"{what}, rank {size}; {why}")
        return tuple(lines)

    def _why(self, bandit: Bandit, group: int, box: int, *, prunes: bool) -> str:
        if box == _NOTHING:
            return f"{self.learner}, nothing is learnt"
        tried = float(bandit.trials[group, box])
        who = "alone" if self.learner == "private" else f"group {group}"
        low, high = bandit.low[box], bandit.high[box]
        arm = f"ratio {low[0]:.2f}-{high[0]:.2f}" if prunes else "no pruning due"
        arm += f", rank {low[1]:.2f}-{high[1]:.2f}"
        if tried < 1e-9:
            return f"{who} tries {arm} for the first time"
        mean = float(bandit.reward[group, box]) / tried
        return f"{who}, {arm} has mean reward {mean:.2f} in {tried:.1f} trials"


def _arrays(bandit: Bandit) -> dict[str, Floats | Ints]:
    return {entry.name: getattr(bandit, entry.name) for entry in fields(Bandit)}


def _bandit(state: State) -> Bandit:
    low, high, depth, trials, reward = (np.asarray(state[entry.name]) for entry in fields(Bandit))
    return Bandit(low, high, depth, trials, reward)


def _put(column: object, device: Ints, values: Floats | Ints) -> Floats | Ints:
    filled = np.array(column)
    filled[device] = values
    return filled


def check_fleet(problem: Problem, known: int) -> None:
    """Refuse a state of another fleet.

    Args:
        problem: of the run.
        known: devices of the state's fleet.

    Raises:
        MethodError: naming both.
    """
    if known != len(problem.devices):
        raise MethodError(
            f"the bandit's state is of a fleet of {known} devices, this one has "
            f"{len(problem.devices)}; resume with the fleet the run was started with"
        )
