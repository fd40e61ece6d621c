"""Where the wall time of a run goes: every second of it is in one part."""

from __future__ import annotations

import time
from collections.abc import Callable


class Laps:
    """A watch that is never stopped; each look at it ends a part and begins the next."""

    def __init__(
        self, began_s: float | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin at a time of the clock; None = now."""
        self._clock = clock
        self._last_s = clock() if began_s is None else began_s
        self._parts: dict[str, float] = {}

    def lap(self, part: str) -> None:
        """Count all since the last look as a part, beside what it has already."""
        now = self._clock()
        self._parts[part] = self._parts.get(part, 0.0) + now - self._last_s
        self._last_s = now

    def take(self) -> dict[str, float]:
        """Return the parts since the last time, and their sum as `wall_s`; the next begin at 0.

        >>> laps = Laps(0.0, clock=iter([2.0, 5.0]).__next__)
        >>> laps.lap("plan_s"), laps.lap("tasks_s")
        (None, None)
        >>> laps.take()
        {'plan_s': 2.0, 'tasks_s': 3.0, 'wall_s': 5.0}
        """
        parts, self._parts = self._parts, {}
        return {**parts, "wall_s": sum(parts.values())}
