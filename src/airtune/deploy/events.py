"""The lines by which a run is followed from elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

MARK = "airtune: "


def as_line(event: Mapping[str, Any]) -> str:
    """Return an event as one line.

    >>> as_line({"stage": "running"})
    'airtune: {"stage": "running"}'
    """
    return MARK + json.dumps(as_plain(event))


def as_plain(value: Any) -> Any:
    """Return a value as JSON has it; numbers that are not finite are None."""
    if isinstance(value, Mapping):
        return {str(key): as_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
