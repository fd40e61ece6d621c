"""What a round takes beside computing and links: tickets, loading, waits; learnt as the rounds go."""

from __future__ import annotations

import numpy as np

from airtune.plan import Floats

FIRST_S = 0.3
"""First guess, before any round."""


class Handover:
    """Predicts it for the next round from the rounds before; ours, no source."""

    def __init__(self) -> None:
        """Know no round yet."""
        self._seen_s: list[float] = []

    def expected_s(self, devices: int) -> float:
        """Return what a round with some devices will take on top of what they were planned to.

        The median of what was seen; a guess before any round.
        """
        if not devices:
            return 0.0
        if self._seen_s:
            return float(np.median(self._seen_s))
        return FIRST_S

    def learn(self, finish_s: Floats, work_s: Floats) -> None:
        """Take in a round.

        Args:
            finish_s: when each device was done; NaN where it was not, shape (n,).
            work_s: seconds of it that it computed, waited and sent, shape (n,).
        """
        known = np.isfinite(finish_s) & np.isfinite(work_s)
        if known.any():
            over_s = float(np.max(finish_s[known]) - np.max(work_s[known]))
            self._seen_s.append(max(over_s, 0.0))
