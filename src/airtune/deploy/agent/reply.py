"""What a device says of a task: whose answer it is, its losses, and the memory that it took at its peak."""

from __future__ import annotations

import math
import resource
from contextlib import suppress
from pathlib import Path

import torch

from airtune.engine.message import Reply, Task
from airtune.work.jobs import Outcome


def reply_to(task: Task) -> Reply:
    """Return an answer to a task that says nothing yet."""
    return Reply(task.kind, task.run, task.round, task.device, task.name, task.ticket)


def figures_of(outcome: Outcome) -> dict[str, float | None]:
    """Return the losses of a device's training, and the importance it saw."""
    return {
        "loss_first": finite(outcome.loss_first),
        "loss_last": finite(outcome.loss_last),
        "importance": finite(outcome.importance),
    }


def finite(value: float) -> float | None:
    """Return a figure as an answer holds it; None = not finite."""
    return value if math.isfinite(value) else None


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


class PeakMemory:
    """The most that was held since `begin`, above what this process held when it had loaded nothing.

    On CUDA that is what torch has allocated there. Elsewhere it is resident memory by Linux's count;
    other systems count the peak of the process's whole life.
    """

    def __init__(self) -> None:
        """Take what is held now as the floor: imports, and nothing of a model."""
        self._floor = _resident("VmRSS")

    def begin(self) -> None:
        """Begin to look: of a new task."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        with suppress(OSError):  # where it cannot be reset, the peak so far counts
            if _CLEAR.exists():
                _CLEAR.write_text(_RESET_PEAK)

    def bytes(self) -> float:
        """Return the peak since then."""
        if torch.cuda.is_available():
            return float(torch.cuda.max_memory_allocated())
        return max(_resident("VmHWM") - self._floor, 0.0)


def _resident(name: str) -> float:
    """Return a line of Linux's status of this process in bytes."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return float(line.split()[1]) * 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024
