"""What an agent is started with, and whether it can work."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airtune.deploy.caller import Proof
from airtune.deploy.memory import check_cap
from airtune.errors import DataError, DeploymentError

REFUSED_S = 100.0
"""How long a key that is refused is tried."""


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What an agent is started with."""

    server: str
    """HOST:PORT."""
    data: str
    proof: Proof | None = None
    """The device's key and certificate, and the server's authority; None with `insecure`."""
    name: str = ""
    """What the device calls itself; with a key, the server knows better."""
    code: str = ""
    """By which it enrols itself where it has no certificate."""
    model: str | None = None
    compute: str = "auto"
    memory_bytes: float | None = None
    """Most that the worker may take; None = no cap."""
    reserve_bytes: float | None = None
    """What of the machine's memory its owner keeps."""
    hours: tuple[datetime.time, datetime.time] | None = None
    """From and until when the device takes part, local time; None = always."""
    probe: Mapping[str, Any] = field(default_factory=dict)
    give_up_s: float = float("inf")
    """How long an unreachable server is tried."""
    refused_s: float = REFUSED_S
    cache: Path | None = None
    """Where base models that the server hands out are kept; None = it may not hand out any."""


def read_hours(text: str) -> tuple[datetime.time, datetime.time]:
    """Return the hours of a text such as 22:00-05:00.

    Raises:
        DeploymentError: if it is none.

    >>> read_hours("22:00-05:30")[1].minute
    30
    """
    found = re.fullmatch(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})", text.strip())
    try:
        if found is None:
            raise ValueError(text)
        from_hour, from_minute, to_hour, to_minute = map(int, found.groups())
        return datetime.time(from_hour, from_minute), datetime.time(to_hour, to_minute)
    except ValueError as error:
        raise DeploymentError(f"--when must be like 22:00-05:00, got {text!r}") from error


def is_open(hours: tuple[datetime.time, datetime.time] | None, now: datetime.time) -> bool:
    """Return whether a device takes part at this hour; hours may pass midnight.

    >>> is_open(read_hours("22:00-05:00"), datetime.time(23, 0))
    True
    """
    if hours is None:
        return True
    begin, end = hours
    return begin <= now < end if begin <= end else now >= begin or now < end


def check_settings(settings: AgentSettings) -> None:
    """Refuse what cannot work before anything is started.

    Raises:
        DeploymentError: if key, certificate or memory cap cannot work.
        DataError: if there are no data.
    """
    if settings.data != "recipe" and not Path(settings.data).expanduser().exists():
        raise DataError(f"there are no data at {settings.data}; give --data a file or folder")
    if settings.proof is not None:
        settings.proof.credentials()
    if settings.memory_bytes is not None:
        check_cap(settings.memory_bytes)
