"""The bytes that real devices have used of a month, in a file of the run, so that no kill forgets any.

What may cross is set aside before it is sent and put right when its size is known. A month is 30
days of the server's clock, from the beginning of the run: devices' data plans go on while a run
stands still.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from airtune.errors import CheckpointError
from airtune.plan import Floats, Ints
from airtune.records import write_atomically
from airtune.wire.traffic_budget import TrafficBudget

LEDGER = "bytes.json"


class StoredBudget(TrafficBudget):
    """An allowance that outlives the process; for devices of a real federation."""

    def __init__(
        self,
        path: Path,
        cap_bytes: float | None,
        devices: int,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Go on with the file, or begin the first month now.

        Args:
            path: of the file; it is written with the first bytes.
            cap_bytes: of a device and month; None = nothing is counted and no file made.
            devices: how many there are.
            clock: seconds since whenever, the same for every process.

        Raises:
            CheckpointError: if the file is damaged or of other devices.
        """
        super().__init__(cap_bytes, devices)
        self._path, self._clock, self._lock = path, clock, threading.RLock()
        self._began_s = clock()
        self._depth, self._is_stale = 0, False
        if cap_bytes is not None and path.exists():
            try:
                said = json.loads(path.read_text(encoding="utf-8"))
                self._began_s = float(said.pop("began_s"))
                super().restore({name: np.asarray(value) for name, value in said.items()})
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{path} is damaged ({error}); restore it") from error

    def begin_round(self, time_s: float) -> None:
        """Let a round begin now; the run's own time stands still while nobody runs it."""
        with self._lock:
            super().begin_round(max(self._clock() - self._began_s, 0.0))

    def spend(self, device: Ints, size_bytes: Floats) -> None:
        """Count bytes and write them down."""
        if self.cap_bytes is None:
            return
        with self._lock:
            super().spend(device, size_bytes)
            self._is_stale = True
            if not self._depth:
                self._write()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write what follows down once, at its end; nobody else counts meanwhile."""
        with self._lock:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._is_stale and not self._depth:
                    self._write()

    def _write(self) -> None:
        arrays = super().snapshot()
        said = {"began_s": self._began_s} | {name: a.tolist() for name, a in arrays.items()}
        write_atomically(self._path, json.dumps(said))
        self._is_stale = False

    def take(self, device: int, size_bytes: float) -> bool:
        """Count bytes of one device that are about to cross; False, and not counted, if too many."""
        with self._lock:
            return super().take(device, size_bytes)

    def snapshot(self) -> dict[str, NDArray[np.generic]]:
        """Return nothing: the file is newer than any checkpoint."""
        return {}

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Keep to the file."""
