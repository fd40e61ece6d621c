"""The time by which a round's devices should be done, learnt from what answers have taken.

A round of n devices is worth the sum of what their updates are worth and lasts until its deadline or
its slowest device. The deadline t that makes

    E[ sum of the values at t ] / E[ max(t, slowest finish at t) ]

largest is found over rounds drawn from the last answers of the fleet, whoever gave them: no device
has to be known, and eight answers are enough to begin with. Reconstructed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from airtune.plan import Floats, Ints
from airtune.plan.pace import Pace, settle

REMEMBERED = 160
"""Answers that are remembered."""
_CANDIDATES = 48
_DRAWS = 64


@dataclass(frozen=True, slots=True)
class Answers:
    """What the last answers took, oldest first, in columns of shape (m,)."""

    unit_s: Floats
    """Seconds a FLOP."""
    down_s: Floats
    """Seconds until a device could begin."""
    byte_s: Floats
    """Seconds a byte of its update."""

    def __len__(self) -> int:
        return len(self.unit_s)

    def joined(self, other: Answers) -> Answers:
        """Return these answers and newer ones; the oldest are forgotten."""
        return Answers(
            *(
                np.concatenate([mine, new])[-REMEMBERED:]
                for mine, new in (
                    (self.unit_s, other.unit_s),
                    (self.down_s, other.down_s),
                    (self.byte_s, other.byte_s),
                )
            )
        )


NO_ANSWERS = Answers(np.zeros(0), np.zeros(0), np.zeros(0))


def best_deadline(
    answers: Answers,
    pace: Pace,
    *,
    step_flops: Floats,
    up_bytes: Floats,
    asked: int,
    generator: np.random.Generator,
) -> float:
    """Return the deadline that gains most a second.

    Args:
        answers: of the fleet, at least one.
        pace: arms and values; its own deadline is not read.
        step_flops: of one step of each arm, shape (arms,).
        up_bytes: of each arm's update, shape (arms,).
        asked: devices of a round.
        generator: draws the rounds.
    """
    step_s = answers.unit_s[:, None] * step_flops
    send_s = answers.byte_s[:, None] * up_bytes
    least = answers.down_s[:, None] + step_s + send_s
    most = answers.down_s[:, None] + pace.most_steps * step_s + send_s
    deadlines = np.geomspace(float(least.min()), float(most.max()), _CANDIDATES)
    rounds = generator.integers(0, len(answers), (_DRAWS, asked))
    rates = [
        _rate(replace(pace, finish_s=float(t)), answers.down_s, step_s, send_s, rounds)
        for t in deadlines
    ]
    return float(deadlines[int(np.argmax(rates))])


def _rate(pace: Pace, down_s: Floats, step_s: Floats, send_s: Floats, rounds: Ints) -> float:
    """Return what rounds of these answers gain a second under a deadline."""
    found = settle(pace, start_s=down_s, step_s=step_s, send_s=send_s)
    value = np.asarray(pace.value)[found.arm, found.steps - 1]
    lasted = np.maximum(pace.finish_s, found.finish_s[rounds].max(axis=1))
    return float(value[rounds].sum(axis=1).mean() / lasted.mean())
