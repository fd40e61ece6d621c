"""Robust rules of aggregation against a few dishonest devices, for updates of one shape.

trimmed-mean  of every number, the highest and lowest shares are left out and the rest averaged
              (Yin et al., arXiv 1803.01498)
krum          each update is scored by its distances to its nearest others, and the best are
              averaged (Blanchard et al., NeurIPS 2017; multi-Krum)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from airtune.errors import TrainingError
from airtune.model.lora import Head
from airtune.model.rules.rule import Combined, Layer, Rule
from airtune.model.rules.separate import AVERAGE
from airtune.model.state import Update
from airtune.plan import AggregateSpec, Floats


def trimmed(pieces: Sequence[torch.Tensor], share: float) -> torch.Tensor:
    """Return the mean of n tensors number by number, without the outermost values.

    Args:
        pieces: n of one shape.
        share: left out at either end, in [0, 0.5); floor(share * n) values are.
    """
    cut = math.floor(share * len(pieces))
    ordered = torch.stack([piece.cpu().double() for piece in pieces]).sort(0).values
    return ordered[cut : len(pieces) - cut].mean(0).to(pieces[0].dtype)


def _trimmed_layer(layer: Layer) -> Combined:
    share = layer.spec.trim
    return Combined(
        (
            trimmed([part.a for part in layer.parts], share),
            trimmed([part.b for part in layer.parts], share),
        )
    )


def _trimmed_head(
    previous: Mapping[str, torch.Tensor],
    updates: Sequence[Update],
    weights: Floats,
    spec: AggregateSpec,
) -> Head:
    return {name: trimmed([one.head[name] for one in updates], spec.trim) for name in previous}


def krum(updates: Sequence[Update], spec: AggregateSpec) -> list[int]:
    """Return the places of the n - liars - 2 updates that lie closest to their neighbours.

    Args:
        updates: n alike.
        spec: `liars`, how many may be anything; n must be at least 2 liars + 3.

    Raises:
        TrainingError: if there are too few updates.
    """
    count, liars = len(updates), spec.liars
    if count < 2 * liars + 3:
        raise TrainingError(
            f"krum against {liars} liars needs {2 * liars + 3} updates in a round, {count} came; "
            "lower protection.liars or take more devices"
        )
    rows = torch.stack([_flat(update) for update in updates])
    squares = torch.cdist(rows, rows).square()
    nearest = squares.sort(1).values[:, 1 : count - liars - 1]
    order = nearest.sum(1).argsort(stable=True)
    return sorted(order[: count - liars - 2].tolist())


def _flat(update: Update) -> torch.Tensor:
    tensors = (*update.adapters.values(), *update.head.values())
    return torch.cat([tensor.cpu().double().flatten() for tensor in tensors])


TRIMMED_MEAN = Rule(_trimmed_layer, head=_trimmed_head, needs_alike=True, pools_scores=False)
KRUM = Rule(AVERAGE.combine, choose=krum, needs_alike=True)
