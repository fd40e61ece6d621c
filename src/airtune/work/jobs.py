"""What a device is asked to train in a round, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from airtune.model.images import Examples
from airtune.model.state import Update
from airtune.plan import Assignment


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How a device trains, beyond what its cost depends on (that is in `Workload`)."""

    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """Largest gradient norm of a device's step; 0 = no clipping."""
    scale: float = 2.0
    """alpha / rank, one constant for all ranks."""
    dropout: float = 0.0
    pass_tokens: int = 4096
    """Padded tokens that devices may put into one batched pass together."""

    def at(self, part: float) -> TrainSettings:
        """Return the settings of a round that trains at a part of the learning rate."""
        return self if part == 1.0 else replace(self, learning_rate=part * self.learning_rate)


@dataclass(frozen=True, slots=True)
class Job:
    """One device's work of a round."""

    device: int
    row: Assignment
    sequences: Examples
    weight: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job."""

    device: int
    status: Literal["ok", "refused"]
    update: Update | None
    """None where the status is refused."""
    loss_first: float
    """Mean loss of the first local step; NaN where nothing was scored."""
    loss_last: float
    samples: int
    importance: float = float("nan")
    """Mean over the steps of the summed importance, before it is normalised; NaN = not measured."""
    rank_left: int = 0
    """The rank that the device wants from now on; 0 = none, it was refused."""
    reason: str = ""
    """Why it was refused."""
