"""Training data: reading, templates, tasks, tokens, and which device holds what.

What makes tokens needs torch and is loaded when it is first asked for; a recipe that only
describes data does without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from airtune.data.answers import answer_of
from airtune.data.embedded import (
    ARITHMETIC,
    EMBEDDED_MODEL,
    EMBEDDED_SOURCES,
    EMBEDDED_VISION,
    SHAPES,
    TOPICS,
)
from airtune.data.spec import DataSpec

if TYPE_CHECKING:
    from airtune.data.federated import DeviceData, FederatedData, load_federated
    from airtune.data.images import load_federated_images

__all__ = [
    "ARITHMETIC",
    "EMBEDDED_MODEL",
    "EMBEDDED_SOURCES",
    "EMBEDDED_VISION",
    "SHAPES",
    "TOPICS",
    "DataSpec",
    "DeviceData",
    "FederatedData",
    "answer_of",
    "load_federated",
    "load_federated_images",
]

_NEEDS_TORCH = {
    "DeviceData": "federated",
    "FederatedData": "federated",
    "load_federated": "federated",
    "load_federated_images": "images",
}
"""Name -> the module here that it comes from."""


def __getattr__(name: str) -> object:
    if name in _NEEDS_TORCH:
        return getattr(import_module(f"airtune.data.{_NEEDS_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
