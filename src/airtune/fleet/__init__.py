"""Devices and the wireless links they are on: who is there, how fast, and what a link carries now."""

from airtune.fleet.catalogue import DEVICE_KINDS, DeviceKind
from airtune.fleet.fleet import Fleet, ServerSpec
from airtune.fleet.load import load_fleet, preset_names, preset_summaries
from airtune.fleet.rates import NR, SHANNON, downlink_bps, rate_bps, uplink_bps

__all__ = [
    "DEVICE_KINDS",
    "NR",
    "SHANNON",
    "DeviceKind",
    "Fleet",
    "ServerSpec",
    "downlink_bps",
    "load_fleet",
    "preset_names",
    "preset_summaries",
    "rate_bps",
    "uplink_bps",
]
