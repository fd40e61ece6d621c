"""What a configuration was worth: the reward of FedSpine's bandit.

    R = (a1 dLoss + a2 dPrune) Imp^a3 / (1 + a4 max(T / T_mean - 1, 0)), clipped to [0, 1]

dLoss is the relative loss drop of the device's round, placed among those of the fleet (0.5 the
mean, 0 and 1 two standard deviations off): single batches are noisy and drops shrink as training
goes on, which an absolute scale would take for a worse configuration. dPrune is the share of what
was left to prune that is done, 0.5 where the schedule left no choice; Imp the LoRA importance
relative to the mean; T the finish time. Only lateness costs: who is early waits, and a round is no
longer for it, while an absolute difference would pay a device for being slower.

Source: FedSpine (arXiv 2501.02438) names the ingredients; the form is reconstructed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.plan import Bools, Floats, Results


@dataclass(frozen=True, slots=True)
class RewardWeights:
    """How the ingredients count."""

    loss: float = 0.5
    prune: float = 0.5
    importance: float = 0.25
    time: float = 3.0


def rewards(results: Results, came: Bools, done: Floats, weights: RewardWeights) -> Floats:
    """Return the reward of each device that answered, shape (came.sum(),), in [0, 1].

    Args:
        results: of the round, n devices.
        came: which of them answered, shape (n,).
        done: share of the remaining pruning each did, shape (n,); NaN where it had no choice.
        weights: of the ingredients.
    """
    drop = _placed(
        (results.loss_first[came] - results.loss_last[came])
        / np.maximum(np.abs(results.loss_first[came]), 1e-12)
    )
    pruned = np.where(np.isfinite(done[came]), done[came], 0.5)
    worth = weights.loss * drop + weights.prune * pruned
    worth = worth * _relative(results.importance[came]) ** weights.importance
    time_s = results.finish_s[came]
    mean_s = float(np.mean(time_s)) if time_s.size else 1.0
    late = np.maximum(time_s / max(mean_s, 1e-12) - 1.0, 0.0)
    return np.clip(worth / (1.0 + weights.time * late), 0.0, 1.0)


def _placed(drop: Floats) -> Floats:
    """Return each drop's place in the fleet; 0.5 where it is not known."""
    known = np.isfinite(drop)
    if not known.any():
        return np.full(drop.shape, 0.5)
    mean, spread = float(np.mean(drop[known])), float(np.std(drop[known]))
    level = 0.5 + (np.where(known, drop, mean) - mean) / (4.0 * max(spread, 1e-12))
    return np.clip(level, 0.0, 1.0)


def _relative(importance: Floats) -> Floats:
    """Return importance over its mean; 1 where it is not known."""
    known = np.isfinite(importance) & (importance > 0.0)
    if not known.any():
        return np.ones(importance.shape)
    return np.where(known, importance / float(np.mean(importance[known])), 1.0)
