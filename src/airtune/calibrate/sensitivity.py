"""How much a model's outputs change when heads or channels are removed, by forward passes alone.

A few devices score the structures; the model is then sliced at a few counts of groups with all
channels, and at a few counts of channels with all groups, mended as the local work says, and the
last hidden states are compared with the dense model's on examples of the same devices:

    error = sum |h - h_dense|^2 / sum |h_dense - mean h_dense|^2,      cost = error / (1 - error)

Hidden states need no label and no trained head, so a classifier whose head is fresh is measured
like a language model; the cost, noise over what is left of the signal, goes on rising where the
error levels off. It stands off the clock, like every calibration. Reconstructed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from airtune.data import FederatedData
from airtune.model.base import BaseModel
from airtune.model.batch import Batch
from airtune.model.importance import pool
from airtune.model.slicing import choose_kept, slice_network
from airtune.model.state import GlobalState
from airtune.plan import Ints, Sensitivity, WorkSpec
from airtune.work.importance import (
    calibration_batches,
    measure_device_grams,
    measure_importance,
    measured_batches,
)
from airtune.work.network import mending_of

GROUP_POINTS, CHANNEL_POINTS = 4, 8
"""Counts of each kind at which the model is measured, dense included."""
BATCHES = 2
"""Most batches whose hidden states are compared."""
WORST_ERROR = 0.95
"""Beyond it nothing is told apart."""


@dataclass(frozen=True, slots=True)
class SensitivityProbe:
    """What is measured on, and how its slices are made."""

    base: BaseModel
    data: FederatedData
    """Of the few devices that take part, each with some examples."""
    work: WorkSpec
    batch: int
    """Examples in a batch."""
    seed: int


def measure_sensitivity(probe: SensitivityProbe, scored: GlobalState | None = None) -> Sensitivity:
    """Measure what heads and channels cost this model on these data.

    Args:
        probe: what is measured on.
        scored: its `scored_state`, where it is known; None = measured now.

    Raises:
        DataError: if a device has no example.
        ModelError: if a Gram matrix cannot be solved for.
    """
    shape, scored = probe.base.shape, scored or scored_state(probe)
    dense = _Dense(probe)
    groups, channels = _counts(shape.kv_groups, GROUP_POINTS), _counts(shape.ffn, CHANNEL_POINTS)
    heads_cost = [dense.cost(scored, int(count), shape.ffn) for count in groups]
    ffn_cost = [dense.cost(scored, shape.kv_groups, int(count)) for count in channels]
    return Sensitivity(
        heads=tuple((1.0 - groups / shape.kv_groups).tolist()),
        heads_cost=tuple(np.maximum.accumulate(heads_cost).tolist()),
        ffn=tuple((1.0 - channels / shape.ffn).tolist()),
        ffn_cost=tuple(np.maximum.accumulate(ffn_cost).tolist()),
        source=f"last hidden states of {len(groups) + len(channels) - 2} slices on data of "
        f"{len(probe.data.devices)} devices, off the clock",
    )


def _counts(count: int, points: int) -> Ints:
    """Return counts to keep, falling from all of them, evenly spread; never none."""
    kept = np.rint(np.linspace(count, count / points, points))
    return np.unique(np.maximum(kept, 1).astype(np.int64))[::-1]


def scored_state(probe: SensitivityProbe) -> GlobalState:
    """Return a state that holds what slices are made by: scores, means, second moments.

    Raises:
        DataError: if a device has no example.
    """
    batches = measured_batches(probe.work, probe.batch)
    held = [(device, part.train, 1.0) for device, part in enumerate(probe.data.devices)]
    reports = [
        measure_importance(
            probe.base,
            train,
            criterion=probe.work.importance,
            batch=probe.batch,
            batches=batches,
            seed=probe.seed,
            device=device,
        )
        for device, train, _ in held
    ]
    grams = None
    if probe.work.mend == "least-squares":
        grams = measure_device_grams(
            probe.base, held, batch=probe.batch, batches=batches, seed=probe.seed
        )
    pooled = pool(reports, [weight for _, _, weight in held])
    return GlobalState(0, {}, {}, importance=pooled, grams=grams)


class _Dense:
    """The dense model's hidden states, which slices are held against."""

    def __init__(self, probe: SensitivityProbe) -> None:
        self._probe = probe
        parts = [
            calibration_batches(
                probe.base,
                part.validation if len(part.validation) else part.train,
                batch=probe.batch,
                seed=probe.seed,
                device=device,
            )
            for device, part in enumerate(probe.data.devices)
        ]
        # the first batch of each device before the second of any
        longest = max(map(len, parts))
        turns = [part[index] for index in range(longest) for part in parts if index < len(part)]
        self._batches = turns[:BATCHES]
        self._hidden = [self._states(probe.base.network, batch) for batch in self._batches]

    def cost(self, scored: GlobalState, groups: int, channels: int) -> float:
        """Return noise over signal of a slice with so many groups and channels."""
        base, shape = self._probe.base, self._probe.base.shape
        if scored.importance is None or (groups == shape.kv_groups and channels == shape.ffn):
            return 0.0
        kept = choose_kept(scored.importance, shape, groups, channels)
        network = slice_network(base, kept, mending=mending_of(base, scored, self._probe.work))
        lost = signal = 0.0
        for batch, dense in zip(self._batches, self._hidden, strict=True):
            lost += float((self._states(network, batch) - dense).square().sum())
            signal += float((dense - dense.mean(0)).square().sum())
        error = min(lost / max(signal, 1e-30), WORST_ERROR)
        return error / (1.0 - error)

    @torch.no_grad()
    def _states(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the last hidden states of real tokens, (tokens, width)."""
        backbone = network.get_submodule(self._probe.base.family.backbone)
        found = backbone(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        states: torch.Tensor = found[0][batch.attention_mask.bool()]
        return states.double()
