"""How many bytes each device may still receive and send this month, whatever a method would like.

A month is 30 days of the run's own time. What crosses in a round that spans two months counts in
both, so that no month exceeds the cap however a round's bytes are told apart.

Over real devices the budget is kept in a file of the run, so that no kill forgets any: what may
cross is set aside before it is sent and put right when its size is known. A month is then 30 days of
the server's clock, from the beginning of the run: devices' data plans go on while a run stands still.
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
from airtune.plan import Bools, Floats, Ints
from airtune.records import write_atomically
from airtune.units import format_bytes

TRAFFIC_FILE = "bytes.json"
"""Of a run's folder."""
MONTH_S = 30 * 24 * 3600.0


def does_not_hold(what: str) -> str:
    """Return in words that a device has too few bytes of its month left for something."""
    return f"its bytes of this month do not hold {what} (limits.device_bytes_per_month)"


class TrafficBudget:
    """The devices' bytes of a month; without a cap all are endless and nothing is remembered."""

    def __init__(
        self,
        cap_bytes: float | None,
        devices: int,
        *,
        file: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Go on with the file, or begin the first month now with nothing used.

        Args:
            cap_bytes: that a device may receive and send in a month, together; None = no cap.
            devices: how many there are.
            file: keeps what is counted, if anything is; None = checkpoints do.
            clock: of the months of a file: seconds since whenever, the same for every process.

        Raises:
            CheckpointError: if the file is damaged or of other devices.
        """
        self.cap_bytes = cap_bytes
        self._file, self._clock, self._began_s = file, clock, clock()
        self._lock, self._depth, self._is_stale = threading.RLock(), 0, False
        self._month, self._now_s = 0, 0.0
        self._used, self._since = np.zeros(devices), np.zeros(devices)
        self._short = np.zeros(devices, np.bool_)
        if cap_bytes is not None and file is not None and file.exists():
            self._read(file)

    @property
    def left_bytes(self) -> Floats:
        """What each device has left, shape (devices,); inf without a cap."""
        if self.cap_bytes is None:
            return np.full(self._used.shape, np.inf)
        return self.cap_bytes - self._used

    @property
    def short(self) -> Bools:
        """Devices that were last told more than they have left this month, shape (devices,)."""
        return self._short.copy()

    @property
    def now_s(self) -> float:
        """When the last round began."""
        return self._now_s

    @property
    def month_ends_s(self) -> float:
        """When the next month begins."""
        return (self._month + 1) * MONTH_S

    def begin_round(self, time_s: float) -> None:
        """Let a round begin at this time; a month that is over takes what was used with it.

        With a file the clock says the time: that of the run stands still while nobody runs it.
        """
        with self._lock:
            if self._file is not None:
                time_s = max(self._clock() - self._began_s, 0.0)
            self._now_s = time_s
            month = max(int(time_s // MONTH_S), self._month)
            if month > self._month:
                self._month, self._used = month, self._since.copy()
                self._short[:] = False
            self._since[:] = 0.0

    def faults(self, device: Ints, most_bytes: Floats) -> tuple[str, ...]:
        """Return why devices cannot do what they are told; empty where they can.

        Args:
            device: n devices.
            most_bytes: what it can take of each, (n,).
        """
        if self.cap_bytes is None:
            return ("",) * len(device)
        left = self.left_bytes[device]
        self._short[device] = most_bytes > left
        return tuple(
            f"{does_not_hold('the round')}: {format_bytes(has)} of "
            f"{format_bytes(self.cap_bytes)} are left, up to {format_bytes(most)} are needed"
            if most > has
            else ""
            for most, has in zip(most_bytes.tolist(), left.tolist(), strict=True)
        )

    def spend(self, device: Ints, size_bytes: Floats) -> None:
        """Count bytes that crossed; negative ones give back what was set aside."""
        if self.cap_bytes is None:
            return
        with self.together():
            self._used[device] += size_bytes
            self._since[device] += size_bytes
            self._is_stale = True

    def take(self, device: int, size_bytes: float) -> bool:
        """Count bytes of one device that are about to cross; False, and not counted, if too many."""
        with self._lock:
            if size_bytes > self.left_bytes[device]:
                return False
            self.spend(np.array([device]), np.array([float(size_bytes)]))
            return True

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write what is counted within this context to the file once, at its end.

        Other threads that count wait for it.
        """
        with self._lock:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._is_stale and not self._depth and self._file is not None:
                    arrays = {name: array.tolist() for name, array in self._arrays().items()}
                    write_atomically(self._file, json.dumps({"began_s": self._began_s} | arrays))
                    self._is_stale = False

    def snapshot(self) -> dict[str, NDArray[np.generic]]:
        """Return what was used, as arrays; {} without a cap, and where a file has it."""
        return {} if self.cap_bytes is None or self._file is not None else self._arrays()

    def _arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            "month": np.array(self._month),
            "used": self._used.copy(),
            "since": self._since.copy(),
            "short": self._short.copy(),
        }

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a snapshot; {} = from the start. A file is newer than any.

        Raises:
            CheckpointError: if it is not one of as many devices.
        """
        if self.cap_bytes is not None and self._file is None and arrays:
            self._take(arrays)

    def _read(self, path: Path) -> None:
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            self._began_s = float(said.pop("began_s"))
            self._take(said)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); restore it") from error

    def _take(self, arrays: Mapping[str, object]) -> None:
        try:
            used = np.asarray(arrays["used"], np.float64)
            since = np.asarray(arrays["since"], np.float64)
            short, month = np.asarray(arrays["short"], np.bool_), int(np.asarray(arrays["month"]))
        except KeyError as error:
            raise CheckpointError(f"the bytes used of a month lack {error}") from error
        if not used.shape == since.shape == short.shape == self._used.shape:
            raise CheckpointError(
                f"the bytes used of a month are of {used.shape} devices, {self._used.shape} are there"
            )
        self._used, self._since, self._short = used.copy(), since.copy(), short.copy()
        self._month = month
