"""Real federations: the server, the devices' agents, their keys, and how a run reaches them."""

from pathlib import Path

DEFAULT_PORT = 9443
DEFAULT_STATE = Path("airtune-server")
"""Where a server keeps keys, runs and its state, from where it is started."""
NEEDS_EXTRA = (
    "keys and certificates need the cryptography package; install it with "
    "pip install 'airtune[federation]'"
)
ROSTER = "roster.json"
"""File of a run folder that names its devices, by number."""
PROBES = "probes"
"""Folder of a server, and of a run, with a probe file a device."""
