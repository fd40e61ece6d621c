"""What a decider sees of the devices that are there this round, in columns of shape (n,)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.cost import broadcast_bytes, transfer_s
from airtune.errors import MethodError
from airtune.fleet.rates import downlink_bps
from airtune.plan import Bools, Floats, Ints, LinkState, Observation, Problem, Profiles, whole_model
from airtune.solve import Curves, curves_of, silent

_NAMED = 6
"""Devices that a message names beside the first."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The available devices with everything a method that needs capability and channel may know."""

    device: Ints
    """Indices into the fleet, rising."""
    names: tuple[str, ...]
    weight: Floats
    """Share of the data among those here, summing to 1."""
    flops_per_s: Floats
    memory_bytes: Floats
    """Inf where it is not known."""
    download_s: Floats
    """Of the broadcast adapters; 0 where nothing comes down in this slot."""
    links: LinkState
    curves: Curves
    """Uplinks of `able`."""
    able: Ints
    """Rows that have an uplink and a downlink in this slot."""

    def of(self, column: Floats) -> Floats:
        """Return a column's rows for the devices that are able."""
        return column[self.able]

    def shares(self, of_able: Floats | float = 0.0) -> Floats:
        """Return the shares of all n devices from those of the able ones; the others hold none."""
        share = np.zeros(self.device.shape)
        share[self.able] = np.minimum(of_able, 1.0)
        return share

    def short_of_memory(self, is_short: Bools) -> tuple[int, str]:
        """Return the first of the devices that lack memory, and the names of the others in words.

        Args:
            is_short: which devices do, shape (n,), one at least.
        """
        first, *others = np.flatnonzero(is_short).tolist()
        if not others:
            return first, ""
        named = ", ".join(self.names[row] for row in others[:_NAMED])
        rest = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        return first, f"; memory is too small too of {named}{rest}"

    @property
    def able_names(self) -> tuple[str, ...]:
        """Names of the devices that are able."""
        return tuple(self.names[row] for row in self.able)


def available(observation: Observation) -> Ints:
    """Return the indices of the devices that are there, rising."""
    return np.flatnonzero(observation.available).astype(np.int64)


def see(problem: Problem, observation: Observation) -> Seen:
    """Return the available devices in columns.

    Raises:
        MethodError: if speeds or links are hidden: the method forgot to ask for them in `needs`.
    """
    links, speed = observation.links, observation.flops_per_s
    if links is None or speed is None:
        missing = "channel" if links is None else "capability"
        raise MethodError(
            f"this rule decides by the {missing} of devices, which is hidden from it; "
            f"add {missing!r} to its needs"
        )
    device = available(observation)
    nothing = np.zeros(device.shape)
    dense = whole_model(device, rank=problem.workload.rank, local_steps=1, share=nothing)
    size = np.full(device.shape, broadcast_bytes(problem.shape, problem.workload, dense))
    down_s = transfer_s(size, downlink_bps(links, device))
    mute: Bools = silent(links, device) | ~np.isfinite(down_s)
    able = np.flatnonzero(~mute)
    memory = problem.devices.memory_bytes
    return Seen(
        device=device,
        names=tuple(problem.devices.names[index] for index in device),
        weight=share_of_data(problem.devices, device),
        flops_per_s=speed[device],
        memory_bytes=np.full(device.shape, np.inf) if memory is None else memory[device],
        download_s=np.where(np.isfinite(down_s), down_s, 0.0),
        links=links,
        curves=curves_of(links, device[able]),
        able=able,
    )


def even_shares(link: Ints, dedicated: Bools | None) -> Floats:
    """Return an equal share of every link for its devices, 1 where a device has it to itself."""
    if not link.size:
        return np.zeros(0)
    crowd = np.bincount(link)[link]
    alone = np.zeros(link.shape, np.bool_) if dedicated is None else dedicated
    return np.where(alone, 1.0, 1.0 / crowd)


def share_of_data(devices: Profiles, device: Ints) -> Floats:
    """Return the devices' shares of the data among themselves; equal where none has any."""
    weight = devices.weight[device]
    total = float(np.sum(weight))
    return weight / total if total > 0.0 else np.full(device.shape, 1.0 / max(device.size, 1))
