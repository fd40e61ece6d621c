"""What has happened in the steps of a split round, in columns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from airtune.plan import Floats


@dataclass(slots=True)
class StepLog:
    """What has happened so far, in columns of shape (steps, devices)."""

    losses: Floats
    """NaN where nothing was scored."""
    up_bytes: Floats
    """All that went up: payloads and what goes beside them; 0 = the device was out."""
    down_bytes: Floats
    beside_bytes: Floats
    """Of `up_bytes`: labels, lengths, numbers of samples."""
    up_bound_bytes: Floats
    """What the payloads would take at least, were their entries independent and normal."""
    down_bound_bytes: Floats
    computed: Floats
    """Fraction of the samples that the device had to compute; less than 1 only where its part is
    frozen and the server knows the others."""
    refused: dict[int, str] = field(default_factory=dict)
    """Column -> why the device is out."""
    lost_in: dict[int, int] = field(default_factory=dict)
    """Column -> the step in which the device vanished between forward and backward."""

    @classmethod
    def empty(cls, steps: int, devices: int) -> StepLog:
        """Return the log of a round that has not begun."""
        losses = np.full((steps, devices), np.nan)
        up, down, beside, up_bound, down_bound, computed = np.zeros((6, steps, devices))
        return cls(losses, up, down, beside, up_bound, down_bound, computed)

    def went_up(
        self, step: int, column: int, payload_bytes: int, bound_bytes: float, beside_bytes: int = 0
    ) -> None:
        """Count what a device sent: a payload, and what came beside it."""
        self.up_bytes[step, column] += payload_bytes + beside_bytes
        self.up_bound_bytes[step, column] += bound_bytes
        self.beside_bytes[step, column] += beside_bytes

    def went_down(self, step: int, column: int, payload_bytes: int, bound_bytes: float) -> None:
        """Count a payload that the server sent."""
        self.down_bytes[step, column] += payload_bytes
        self.down_bound_bytes[step, column] += bound_bytes

    def refuse(self, column: int, reason: str) -> None:
        """Put a device out of the round; the first reason stands."""
        self.refused.setdefault(column, reason)
