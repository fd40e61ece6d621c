"""What a device settles for itself within a round: how many local steps, and of which arm.

A server that sees a device once in ten rounds cannot know its speed of today; the device can. It is
told a time by which to be done, the arms it may play and what each is worth after how many steps,
and picks by its own clock

    s(a) = clip( floor( (finish_s - start_s - send_s(a)) / step_s(a) ), 1, S )
    a    = argmax value[a, s(a)] over the arms that are done by finish_s

or the arm that is done first where none is. The simulator and a real device settle by this function.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.errors import MethodError
from airtune.plan.shape import Bools, Floats, Ints

Arm = tuple[float, float, int]
"""Head ratio, FFN ratio and rank."""


@dataclass(frozen=True, slots=True)
class Pace:
    """When devices are to be done, and what they may choose from.

    Raises:
        MethodError: if there is no time, no arm or no step to choose, or a value is not finite.
    """

    finish_s: float
    """Seconds after the start of the round by which an update should have arrived."""
    value: tuple[tuple[float, ...], ...]
    """What an arm is worth after 1, 2, ... steps, one row an arm."""
    arms: tuple[Arm, ...] = ()
    """What may be played; () = each device's own assignment is the only arm."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.finish_s) and self.finish_s > 0.0):
            raise MethodError(f"finish_s of a pace must be above 0 and finite, got {self.finish_s}")
        rows = max(len(self.arms), 1)
        lengths = {len(row) for row in self.value}
        if len(self.value) != rows or len(lengths) != 1 or not min(lengths):
            raise MethodError(
                f"a pace needs one row of values for each of {rows} arms, all of one length of at "
                f"least 1 step, got rows of {sorted(map(len, self.value))}"
            )
        if not np.all(np.isfinite(self.value)):
            raise MethodError("the values of a pace must be finite")

    @property
    def most_steps(self) -> int:
        """Most local steps of a device."""
        return len(self.value[0])


@dataclass(frozen=True, slots=True)
class Settled:
    """What devices settled on, in columns of shape (n,)."""

    arm: Ints
    """Index into the arms; 0 where a device's own assignment is the only one."""
    steps: Ints
    finish_s: Floats
    """When each expects to be done; inf where it never is."""
    fits: Bools
    """False where not even one step of any arm is done in time."""


def settle(
    pace: Pace, *, start_s: Floats, step_s: Floats, send_s: Floats, allowed: Bools | None = None
) -> Settled:
    """Return what devices pick by what they know of themselves.

    Args:
        pace: what they are told.
        start_s: when each can begin to train, shape (n,).
        step_s: seconds of one step of each arm, shape (n, arms); inf = it cannot.
        send_s: seconds of sending the arm's update, shape (n, arms).
        allowed: arms that a device's memory holds, shape (n, arms); None = all.
    """
    value = np.asarray(pace.value)
    usable = np.isfinite(step_s + send_s) if allowed is None else allowed
    usable &= np.isfinite(step_s + send_s)
    room = pace.finish_s - start_s[:, None] - send_s
    with np.errstate(invalid="ignore"):
        steps = np.where(usable, np.clip(np.floor(room / step_s + 1e-9), 1, pace.most_steps), 1)
    steps = steps.astype(np.int64)
    done_s = np.where(usable, start_s[:, None] + steps * step_s + send_s, np.inf)
    is_in_time = done_s <= pace.finish_s * (1.0 + 1e-9)
    worth = value[np.arange(step_s.shape[1]), steps - 1]
    best = np.argmax(np.where(is_in_time, worth, -np.inf), axis=1)
    fits = is_in_time.any(axis=1)
    arm = np.where(fits, best, np.argmin(done_s, axis=1))
    row = np.arange(len(start_s))
    return Settled(arm, steps[row, arm], done_s[row, arm], np.asarray(fits))
