"""Kinds of devices by name, so that a fleet file need not repeat their numbers.

Speeds are what training achieves, not what a data sheet promises: 40 % of the published single
precision peak for GPUs, 20 % for CPUs. This is an assumption, easily wrong by a factor of two for
a given model; a probe of the device replaces it. Memory is what the module has less 2 GiB for the
system (1 GiB below 8 GiB); power is the module's usual power mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from airtune.units import GIB

_GPU, _CPU = 0.4, 0.2


@dataclass(frozen=True, slots=True)
class DeviceKind:
    """One kind of device."""

    flops_per_s: float
    """Achieved in training."""
    memory_bytes: float
    """Left for training."""
    power_w: float
    """Drawn while computing."""


def _kind(peak_tflops: float, achieved: float, memory_gib: float, power_w: float) -> DeviceKind:
    return DeviceKind(peak_tflops * achieved * 1e12, memory_gib * GIB, power_w)


DEVICE_KINDS: Mapping[str, DeviceKind] = MappingProxyType(
    {
        "jetson-nano-4gb": _kind(0.236, _GPU, 3, 10),
        "jetson-tx2-8gb": _kind(0.666, _GPU, 6, 15),
        "jetson-xavier-nx-8gb": _kind(0.845, _GPU, 6, 15),
        "jetson-agx-xavier-32gb": _kind(1.41, _GPU, 30, 30),
        "orin-nano-8gb": _kind(1.28, _GPU, 6, 15),
        "orin-nx-16gb": _kind(1.88, _GPU, 14, 25),
        "agx-orin-64gb": _kind(5.32, _GPU, 62, 50),
        "raspberry-pi-5-8gb": _kind(0.154, _CPU, 6, 8),
        "laptop-cpu-16gb": _kind(0.8, _CPU, 14, 28),
        "phone-high-12gb": _kind(0.26, _CPU, 6, 6),
        "phone-mid-8gb": _kind(0.14, _CPU, 4, 5),
        "phone-low-4gb": _kind(0.06, _CPU, 1.5, 4),
    }
)
