"""Training data: reading, templates, tasks, tokens, and which device holds what."""

from airtune.data.answers import answer_of
from airtune.data.embedded import ARITHMETIC, EMBEDDED_MODEL, EMBEDDED_SOURCES, TOPICS
from airtune.data.federated import DeviceData, FederatedData, load_federated
from airtune.data.spec import DataSpec

__all__ = [
    "ARITHMETIC",
    "EMBEDDED_MODEL",
    "EMBEDDED_SOURCES",
    "TOPICS",
    "DataSpec",
    "DeviceData",
    "FederatedData",
    "answer_of",
    "load_federated",
]
