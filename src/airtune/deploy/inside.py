"""A device inside Flower's own process, for its simulation: no agent, the recipe's own data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airtune.engine.envelope import Envelope

if TYPE_CHECKING:
    from airtune.deploy.device import Device

_DEVICES: dict[str, Device] = {}
"""Kept as long as Flower keeps the process: its simulation keeps it for a run."""


def handle(letter: Envelope, data: str | None) -> Envelope:
    """Do a task in this process, on a file of data, or on a share of the recipe's own.

    Raises:
        AirtuneError: if the message cannot be read.
    """
    from airtune.deploy.device import OF_RECIPE, Device, DeviceSettings

    data = data or OF_RECIPE
    if data not in _DEVICES:
        _DEVICES[data] = Device(DeviceSettings(data=data, compute="auto"))
    return _DEVICES[data].handle(letter)
