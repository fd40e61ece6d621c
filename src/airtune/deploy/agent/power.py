"""What a device draws, where it can be read: Intel's and AMD's RAPL counters, Jetson's sensors."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SYSTEM = Path("/sys")
_PACKAGE = "class/powercap/intel-rapl:?"
"""Whole packages; their parts have a second number."""
_MONITORS = "class/hwmon/hwmon*"
_JETSON_RAILS = ("VDD_IN", "POM_5V_IN", "VDD_TOTAL")
"""Labels of the rail that feeds the whole board."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What was read over a stretch of work."""

    watt: float
    source: str


@dataclass(slots=True)
class PowerMeter:
    """Reads power over a stretch: `start`, `sample` now and then, `stop`."""

    root: Path = SYSTEM
    clock: Callable[[], float] = time.monotonic
    _began: float = 0.0
    _energy_uj: dict[Path, int] | None = None
    _samples: list[float] | None = None

    def start(self) -> None:
        """Begin a stretch."""
        self._energy_uj, self._began, self._samples = self._energies(), self.clock(), []
        self.sample()

    def sample(self) -> None:
        """Read sensors that show power of the moment."""
        watt = self._board_watt()
        if watt is not None and self._samples is not None:
            self._samples.append(watt)

    def stop(self) -> Drawn | None:
        """Return the mean power since the start; None where nothing can be read."""
        self.sample()
        if self._samples:
            return Drawn(sum(self._samples) / len(self._samples), "board sensor")
        before, seconds = self._energy_uj or {}, self.clock() - self._began
        if not before or seconds <= 0:
            return None
        after = self._energies()
        used = 0.0
        for path, start in before.items():
            # a counter that has run over begins again at 0
            span = after.get(path, start) - start
            used += span if span >= 0 else span + (_number(path / "max_energy_range_uj") or 0)
        return Drawn(used / 1e6 / seconds, "RAPL")

    def _energies(self) -> dict[Path, int]:
        found = {path: _number(path / "energy_uj") for path in sorted(self.root.glob(_PACKAGE))}
        return {path: value for path, value in found.items() if value is not None}

    def _board_watt(self) -> float | None:
        for folder in sorted(self.root.glob(_MONITORS)):
            for label in sorted(folder.glob("in*_label")):
                if _text(label) not in _JETSON_RAILS:
                    continue
                channel = label.name.removeprefix("in").removesuffix("_label")
                millivolt = _number(folder / f"in{channel}_input")
                milliampere = _number(folder / f"curr{channel}_input")
                if millivolt is not None and milliampere is not None:
                    return millivolt * milliampere / 1e6
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""  # a sensor that may not be read is one that is not there


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None
