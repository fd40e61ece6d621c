"""What a test bed consists of, read from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

DEFAULT = Path(__file__).parent / "three.yaml"
MAX_DEVICES = 60


class SpecError(ValueError):
    """A test bed's file is wrong."""


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """One device: its link to the server, its memory and its processor."""

    name: str
    up_mbps: float
    down_mbps: float
    delay_ms: float = 0.0
    """One way."""
    loss: float = 0.0
    """Fraction of packets lost, each way."""
    memory_mb: float | None = None
    """Cap of its training process."""
    cpu: float = 1.0
    """Share of one processor."""

    @property
    def needs_tunnel(self) -> bool:
        """Delay and loss are made by a program; rates alone by the kernel."""
        return self.delay_ms > 0 or self.loss > 0


@dataclass(frozen=True, slots=True)
class Spec:
    """A test bed."""

    name: str
    devices: tuple[DeviceSpec, ...]


def read_spec(path: Path = DEFAULT) -> Spec:
    """Read a test bed's file.

    Raises:
        SpecError: with what is wrong and what is allowed.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise SpecError(f"test bed {path} cannot be read: {error}") from error
    if not isinstance(data, Mapping) or data.keys() != {"name", "devices"}:
        raise SpecError(f"test bed {path} must hold name and devices, nothing else")
    devices = tuple(_device(row, path) for row in data["devices"])
    names = [device.name for device in devices]
    if not 1 <= len(devices) <= MAX_DEVICES or len(set(names)) < len(names):
        raise SpecError(
            f"test bed {path} needs 1 to {MAX_DEVICES} devices of different names, got {names}"
        )
    return Spec(str(data["name"]), devices)


def _device(row: Any, path: Path) -> DeviceSpec:
    allowed = {field.name for field in fields(DeviceSpec)}
    if not isinstance(row, Mapping) or not row.keys() <= allowed:
        raise SpecError(f"a device of {path} has {', '.join(sorted(allowed))}; got {row!r}")
    try:
        device = DeviceSpec(**row)
    except TypeError as error:
        raise SpecError(f"a device of {path} is incomplete: {error}") from error
    if not (
        device.up_mbps > 0 and device.down_mbps > 0 and 0 <= device.loss < 1 and device.cpu > 0
    ):
        raise SpecError(f"device {device.name} needs rates and cpu above 0 and loss in [0, 1)")
    return device
