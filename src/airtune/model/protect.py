"""Protection against dishonest devices, and privacy: clipped updates and noise.

Rules that leave outliers out are in `model.rules.robust`.

clipping      an update's difference to what was broadcast is scaled to a norm at most, over all its
              tensors together; any slice and rank
noise         Gaussian, on the mean of clipped updates (DP-FedAvg, arXiv 1710.06963)

Noise and those rules compare updates number by number, so all must have one shape.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from airtune.errors import ModelError
from airtune.model.state import GlobalState, Update
from airtune.model.update import sent_of
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
    start = sent_of(update, state, shape) | dict(state.head)
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
    first = _shapes(updates[0]) if updates else {}
    for update in updates:
        if not _is_whole(update, shape) or _shapes(update) != first:
            raise ModelError(
                f"update of device {update.device} is pruned or of rank {update.rank} where others "
                f"have {updates[0].rank}: robust rules and privacy compare updates number by "
                "number; use a method whose devices all train the whole model at one rank"
            )


def _shapes(update: Update) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in update.adapters.items()}


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
