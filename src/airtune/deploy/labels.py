"""Labels of devices, by which runs choose them: site=north, kind=orin."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from airtune.errors import DeploymentError

Labels = Mapping[str, str]
_KEY, _VALUE = (
    r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?",
    r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?",
)


def read_labels(words: Iterable[str]) -> dict[str, str]:
    """Return labels from words such as site=north.

    Raises:
        DeploymentError: if a word is none, or two give one key different values.

    >>> read_labels(["site=north", "kind=orin"])
    {'site': 'north', 'kind': 'orin'}
    """
    labels: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        if not re.fullmatch(_KEY, key) or not re.fullmatch(_VALUE, value):
            raise DeploymentError(
                f"a label is KEY=VALUE, such as site=north: letters (small in the key), digits and "
                f". _ - inside, at most 63 each; got {word!r}"
            )
        if labels.setdefault(key, value) != value:
            raise DeploymentError(
                f"the label {key} can have one value, got {labels[key]!r} and {value!r}"
            )
    return labels


def matches(labels: Labels, where: Labels) -> bool:
    """Return whether a device's labels hold all that are asked for.

    >>> matches({"site": "north", "kind": "orin"}, {"site": "north"})
    True
    """
    return where.items() <= labels.items()


def format_labels(labels: Labels) -> str:
    """Return labels as they are typed, in alphabetical order; - for none."""
    return " ".join(f"{key}={value}" for key, value in sorted(labels.items())) or "-"
