"""A device inside Flower's own process, for its simulation: no agent, the recipe's own data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airtune.engine.envelope import Envelope

if TYPE_CHECKING:
    from flwr.app import Context

    from airtune.deploy.device import Device

_DEVICES: dict[str, Device] = {}
"""Kept as long as Flower keeps the process: its simulation keeps it for a run."""


def handle(letter: Envelope, context: Context) -> Envelope:
    """Do a task in this process.

    Raises:
        AirtuneError: if the message cannot be read.
    """
    from airtune.deploy.device import OF_RECIPE, Device, DeviceSettings

    data = str(context.node_config.get("data", OF_RECIPE))
    if data not in _DEVICES:
        _DEVICES[data] = Device(DeviceSettings(data=data, compute="auto"))
    return _DEVICES[data].handle(letter)
