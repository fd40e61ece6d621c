"""Learning that one device cannot spoil: updates clipped, outliers left out, noise for privacy.

clipping      an update's difference to what was broadcast is scaled to a norm at most, over all its
              tensors together; any slice and rank
trimmed mean  of every number, the highest and lowest shares are left out and the rest averaged
              (Yin et al., arXiv 1803.01498)
krum          each update is scored by its distances to its nearest others, and the best are
              averaged (Blanchard et al., NeurIPS 2017; multi-Krum)
noise         Gaussian, on the mean of clipped updates (DP-FedAvg, arXiv 1710.06963)

The last three compare updates number by number, so all must have one shape.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from airtune.errors import ModelError, TrainingError
from airtune.model.lora import take
from airtune.model.state import GlobalState, Update
from airtune.plan import ModelShape

Tensors = Mapping[str, torch.Tensor]


def clip_update(update: Update, state: GlobalState, shape: ModelShape, limit: float) -> Update:
    """Return the update with its difference to the broadcast state scaled to a norm at most.

    Args:
        update: Checked.
        state: What the device started from.
        shape: The unpruned model.
        limit: Largest Euclidean norm of the difference, above 0.
    """
    start = take(state.adapters, shape, update.kept, update.rank) | dict(state.head)
    given = dict(update.adapters) | dict(update.head)
    moved = {
        name: given[name].double() - start[name].double().to(given[name].device) for name in given
    }
    norm = math.sqrt(sum(float(tensor.square().sum()) for tensor in moved.values()))
    if norm <= limit:
        return update
    scaled = {
        name: (start[name].double().to(tensor.device) + tensor * (limit / norm)).to(
            given[name].dtype
        )
        for name, tensor in moved.items()
    }
    return replace(
        update,
        adapters={name: scaled[name] for name in update.adapters},
        head={name: scaled[name] for name in update.head},
    )


def check_alike(updates: Sequence[Update], shape: ModelShape) -> None:
    """Refuse updates that cannot be compared number by number.

    Raises:
        ModelError: if one is pruned, or ranks differ.
    """
    for update in updates:
        if not _is_whole(update, shape) or update.rank != updates[0].rank:
            raise ModelError(
                f"update of device {update.device} is pruned or of rank {update.rank} where others "
                f"have {updates[0].rank}: robust rules and privacy compare updates number by "
                "number; use a method whose devices all train the whole model at one rank"
            )


def trimmed_mean(updates: Sequence[Update], share: float) -> tuple[Tensors, Tensors]:
    """Return adapters and head with the outermost values of every number left out.

    Args:
        updates: n alike.
        share: Left out at either end, in [0, 0.5); floor(share * n) values are.
    """
    cut = math.floor(share * len(updates))

    def mean(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        ordered = torch.stack([piece.cpu().double() for piece in pieces]).sort(0).values
        return ordered[cut : len(updates) - cut].mean(0).to(pieces[0].dtype)

    first = updates[0]
    return (
        {name: mean([update.adapters[name] for update in updates]) for name in first.adapters},
        {name: mean([update.head[name] for update in updates]) for name in first.head},
    )


def krum(updates: Sequence[Update], liars: int) -> list[int]:
    """Return the places of the n - liars - 2 updates that lie closest to their neighbours.

    Args:
        updates: n alike.
        liars: f, how many may be anything; n must be at least 2 f + 3.

    Raises:
        TrainingError: if there are too few updates.
    """
    count = len(updates)
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


def add_noise(tensors: Tensors, deviation: float) -> dict[str, torch.Tensor]:
    """Return tensors with Gaussian noise.

    It is drawn from the system: noise of a run's seed hides nothing from those who know the seed.

    Args:
        tensors: Any.
        deviation: Standard deviation of every number, at least 0.
    """
    stream = torch.Generator().manual_seed(secrets.randbits(63))
    return {
        name: tensor + deviation * torch.randn(tensor.shape, generator=stream).to(tensor)
        for name, tensor in tensors.items()
    }


def _is_whole(update: Update, shape: ModelShape) -> bool:
    kept = update.kept
    return all(len(row) == shape.kv_groups for row in kept.groups) and all(
        len(row) == shape.ffn for row in kept.channels
    )


def _flat(update: Update) -> torch.Tensor:
    tensors = (*update.adapters.values(), *update.head.values())
    return torch.cat([tensor.cpu().double().flatten() for tensor in tensors])
