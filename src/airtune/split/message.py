"""What the ends of a cut say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Kind(IntEnum):
    """What a message is."""

    WELCOME = 1
    """Server: go on with `step` of `steps`; beside it, the samples that it remembers."""
    ACTIVATION = 2
    """Device: lengths and labels beside the activation at the cut."""
    GRADIENT = 3
    """Server: the gradient of the activation, and the loss where the server computes it."""
    HIDDEN = 4
    """Server, where labels stay: the last hidden state at the positions the head reads."""
    HIDDEN_GRADIENT = 5
    """Device, where labels stay: the gradient of the hidden state, and the loss."""
    STOP = 6
    """Device: it takes no further step, lest its answer miss the deadline; what it learnt stands."""


@dataclass(frozen=True, slots=True)
class StepMessage:
    """One message, taken apart."""

    kind: Kind
    run: int
    round: int
    step: int
    device: int
    rows: int = 0
    """Examples in the batch."""
    steps: int = 0
    beside: bytes = b""
    payload: bytes = b""
    loss: float = float("nan")
    share: float = 1.0
    """Of an activation: the part of its step's mean loss that this micro-batch makes up."""
    left_s: float = float("inf")
    """In a welcome: until the deadline, by which the device's answer must be back too."""

    @property
    def body_bytes(self) -> int:
        """What is counted: all but the header."""
        return len(self.beside) + len(self.payload)
