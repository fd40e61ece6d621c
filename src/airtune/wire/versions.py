"""Which versions of airtune may talk to each other: said here, asked when a device connects and of every message.

Versions of one series do: 0.1.3 and 0.1.7, not 0.1.3 and 0.2.0. A release that changes what crosses
the network, or what a recipe means, begins a new series. So the server is updated first; devices of
the series before are told, and try again until they are updated too.
"""

from __future__ import annotations

import re


def series_of(version: str) -> tuple[int, int] | None:
    """Return the series of a version, None where it is no version.

    >>> series_of("0.1.7"), series_of("1.2.0rc1"), series_of("new")
    ((0, 1), (1, 2), None)
    """
    found = re.match(r"(\d{1,6})\.(\d{1,6})(?:[.+]|(?:a|b|rc|\.?dev)\d|$)", version)
    return None if found is None else (int(found[1]), int(found[2]))


def may_talk(one: str, other: str) -> bool:
    """Return whether two versions are of one series.

    >>> may_talk("0.1.3", "0.1.7"), may_talk("0.1.3", "0.2.0"), may_talk("new", "new")
    (True, False, False)
    """
    return series_of(one) is not None and series_of(one) == series_of(other)


def why_refused(server: str, device: str, *, name: str) -> str:
    """Return why a device of one version cannot serve a server of another, "" if it can.

    >>> why_refused("0.2.1", "0.2.0", name="gate-1")
    ''
    """
    if may_talk(server, device):
        return ""
    ours, theirs = series_of(server), series_of(device)
    said = f"the server runs airtune {server}, {name} airtune {device[:40]!s}"
    if ours is None or theirs is None:
        return f"{said}; install the same version on both"
    wanted = ".".join(map(str, ours))
    if theirs < ours:
        return f"{said}, which is too old: install a version {wanted} on {name}"
    return f"{said}, which is too new: update the server first, or install a version {wanted} on {name}"
