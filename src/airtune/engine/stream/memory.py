"""What the server of streams remembers of all devices' samples, for one run at a time."""

from __future__ import annotations

import threading

from airtune.engine.stream.task import SplitTask
from airtune.split.memory import CutMemory, Samples


class ServerMemory:
    """The memory of the run that is served; what belongs to another run is dropped."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._run, self._memory = "", CutMemory()
        self._lock = threading.Lock()

    def begin(self, task: SplitTask) -> dict[int, Samples]:
        """Return what is remembered of the devices of a round, for this round to change.

        What a round that was given up still does is lost on the next.

        Returns:
            By column, of those whose samples are remembered.
        """
        with self._lock:
            self._memory = self._memory.copy() if task.run == self._run else CutMemory()
            self._run = task.run
            return self._memory.opened(task.context, task.rows)
