"""Reading settings from YAML so that every fault is found, named and reported together.

A `Section` wraps one mapping. Each question marks its key as known and returns a value; a fault
is noted and a harmless value returned, so that reading goes on to the next one. Keys never asked
for are unknown, and `close` names the nearest that was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TypeVar

from airtune.errors import FleetError

Choice = TypeVar("Choice", bound=str)


def nearest(word: str, known: Sequence[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest known word, or nothing.

    >>> nearest("devcies", ["devices", "links"])
    "; did you mean 'devices'?"
    """
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def raise_faults(subject: str, faults: Sequence[str]) -> None:
    """Raise one error with every fault, if there is any.

    Raises:
        FleetError: with one line a fault.
    """
    if len(faults) == 1:
        raise FleetError(f"{subject}: {faults[0]}")
    if faults:
        lines = "\n".join(f"  - {fault}" for fault in faults)
        raise FleetError(f"{subject} has {len(faults)} faults:\n{lines}")


class SettingsSection:
    """One mapping of a settings file, its place in the file, and the faults found so far."""

    def __init__(self, data: object, where: str, faults: list[str]) -> None:
        self.where = where
        self.faults = faults
        self._known: dict[str, None] = {}
        self._data: Mapping[str, object] = {}
        if isinstance(data, Mapping):
            self._data = {str(key): value for key, value in data.items()}
        else:
            self.fault("", f"must be a mapping of keys to values, got {_show(data)}")

    def fault(self, key: str, message: str) -> None:
        """Note a fault of a key, or of the whole section where the key is empty."""
        self.faults.append(f"{self.path(key)} {message}".strip())

    def path(self, key: str) -> str:
        """Return the dotted name of a key in the file."""
        return ".".join(part for part in (self.where, key) if part)

    def has(self, key: str) -> bool:
        """Return whether a key is there and not null."""
        self._known[key] = None
        return self._data.get(key) is not None

    def get(self, key: str) -> object:
        """Return the bare value of a key, None where it is absent."""
        self._known[key] = None
        return self._data.get(key)

    def section(self, key: str) -> SettingsSection:
        """Return the mapping below a key; an absent one is empty."""
        value = self.get(key)
        return SettingsSection({} if value is None else value, self.path(key), self.faults)

    def sections(self, key: str) -> list[tuple[str, SettingsSection]]:
        """Return the named mappings below a key, in file order."""
        value = self.get(key)
        if not isinstance(value, Mapping) or not value:
            self.fault(key, f"must be a mapping of names to settings, got {_show(value)}")
            return []
        return [
            (str(name), SettingsSection(data, f"{self.path(key)}.{name}", self.faults))
            for name, data in value.items()
        ]

    def listed(self, key: str) -> list[SettingsSection]:
        """Return the mappings listed below a key."""
        value = self.get(key)
        if not isinstance(value, list) or not value:
            self.fault(key, f"must be a list with at least one entry, got {_show(value)}")
            return []
        return [
            SettingsSection(data, f"{self.path(key)}[{index}]", self.faults)
            for index, data in enumerate(value)
        ]

    def number(
        self,
        key: str,
        default: float | None = None,
        *,
        low: float = -math.inf,
        high: float = math.inf,
        above: float = -math.inf,
    ) -> float:
        """Return a number in [low, high] and greater than `above`; no default = required."""
        if not self.has(key):
            if default is None:
                self.fault(key, f"is missing; it must be a number {_range(low, high, above)}")
                return 1.0
            return default
        return self.checked(key, self._data[key], low=low, high=high, above=above)

    def checked(
        self,
        key: str,
        value: object,
        *,
        low: float = -math.inf,
        high: float = math.inf,
        above: float = -math.inf,
    ) -> float:
        """Return a value as a number of the range; a fault names the key."""
        number = as_number(value)
        if number is None or not low <= number <= high or number <= above:
            self.fault(key, f"must be a number {_range(low, high, above)}, got {_show(value)}")
            return 1.0
        return number

    def whole(self, key: str, default: int, *, low: int = 0) -> int:
        """Return a whole number of at least `low`."""
        number = self.number(key, float(default), low=low)
        if number != int(number):
            self.fault(key, f"must be a whole number, got {number:g}")
        return int(number)

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text that is not empty; no default = required."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, str) and value.strip():
            return value.strip()
        missing = "is missing; it must be a text" if value is None else "must be a text"
        self.fault(key, missing if value is None else f"{missing}, got {_show(value)}")
        return ""

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a text or a list of texts as a tuple; an absent key gives none."""
        value = self.get(key)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if any(not isinstance(entry, str) or not entry.strip() for entry in values):
            self.fault(key, f"must be a text or a list of texts, got {_show(value)}")
            return ()
        return tuple(str(entry).strip() for entry in values)

    def choice(self, key: str, options: Sequence[Choice], default: Choice | None = None) -> Choice:
        """Return one of the options; no default = required."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        for option in options:
            if value == option:
                return option
        allowed = ", ".join(options)
        got = "is missing; it" if value is None else ""
        tail = "" if value is None else f", got {_show(value)}{nearest(str(value), options)}"
        self.fault(key, f"{got} must be one of {allowed}{tail}".strip())
        return options[0]

    def close(self) -> None:
        """Note every key that was never asked for, with the nearest one that was."""
        for key in self._data:
            if key not in self._known:
                known = list(self._known)
                hint = nearest(key, known) or f"; known keys are {', '.join(known)}"
                self.fault(key, f"is not a known key{hint}")


def as_number(value: object) -> float | None:
    """Return a finite number, None for anything else.

    YAML 1.1 reads `1e9` as a text; it is taken as the number it was meant to be.

    >>> as_number("1e9"), as_number(True), as_number("fast")
    (1000000000.0, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _range(low: float, high: float, above: float) -> str:
    if math.isfinite(low) and math.isfinite(high):
        return f"in [{low:g}, {high:g}]"
    words = [f"above {above:g}"] if math.isfinite(above) else []
    words += [f"of at least {low:g}"] if math.isfinite(low) and low > above else []
    words += [f"of at most {high:g}"] if math.isfinite(high) else []
    return " and ".join(words) or "that is finite"


def _show(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
