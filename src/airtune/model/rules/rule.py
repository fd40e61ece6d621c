"""What a rule of aggregation is made of, and one layer of a round as a rule sees it.

A rule combines the devices' factors of one layer; weights, coverage of slices, the head, scores and
protection are the same for all and stand in `model.aggregate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from airtune.model.lora import Head
from airtune.model.state import Update
from airtune.plan import AggregateSpec, Floats, Ints

Factors = tuple[torch.Tensor, torch.Tensor]
"""A (rank, in) and B (out, rank)."""


@dataclass(frozen=True, slots=True)
class LayerPart:
    """One device's share of one layer."""

    a: torch.Tensor
    b: torch.Tensor
    columns: Ints | None
    """Of the unpruned layer, which the device kept; None = all."""
    rows: Ints | None
    weight: float


@dataclass(frozen=True, slots=True)
class Layer:
    """One LoRA layer of a round."""

    name: str
    previous: Factors
    """On the full grid, before the round."""
    parts: Sequence[LayerPart]
    """What came back, at least one."""
    starts: Sequence[LayerPart]
    """What each device was sent, with negative weights; empty unless the rule `needs_sent`."""
    spec: AggregateSpec
    scale: float
    """alpha / rank."""
    seed: int
    """Of the run."""
    round: int
    """Counted from 0, as the next begins."""


@dataclass(frozen=True, slots=True)
class Combined:
    """What a layer becomes."""

    factors: Factors
    merged: torch.Tensor | None = None
    """Added to the base for good, (out, in); None = nothing."""


def mean_head(
    previous: Mapping[str, torch.Tensor],
    updates: Sequence[Update],
    weights: Floats,
    spec: AggregateSpec,
) -> Head:
    """Return the mean of the task heads by the devices' data."""
    head: Head = {}
    for name, old in previous.items():
        total = torch.zeros(old.shape, dtype=torch.float64)
        for update, weight in zip(updates, weights, strict=True):
            total += float(weight) * update.head[name].cpu().double()
        head[name] = total.to(old.dtype)
    return head


def all_of(updates: Sequence[Update], spec: AggregateSpec) -> list[int]:
    """Return the places of all updates."""
    return list(range(len(updates)))


def by_data(updates: Sequence[Update], data_weights: Floats) -> Floats:
    """Return the shares of the data as they are."""
    return data_weights


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of aggregation."""

    combine: Callable[[Layer], Combined]
    choose: Callable[[Sequence[Update], AggregateSpec], list[int]] = all_of
    """Which updates count, by place."""
    weigh: Callable[[Sequence[Update], Floats], Floats] = by_data
    """Weights of the adapters from those of the data, both adding up to 1."""
    head: Callable[[Mapping[str, torch.Tensor], Sequence[Update], Floats, AggregateSpec], Head] = (
        mean_head
    )
    keeps_axes: bool = True
    """A direction of the adapters is the one it was in the round before."""
    needs_alike: bool = False
    """Updates are compared number by number, so all have one shape."""
    needs_sent: bool = False
    """It counts what a device has changed, so it needs what the device was sent."""
    pools_scores: bool = True
    """Scores of importance that came with the updates replace the server's."""
