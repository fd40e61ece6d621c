"""How far a device's update agrees with the others of its round.

With d_i what device i changed, on the coordinates that it trained,

    y_i = <d_i, mean of d_j over the other devices that trained the coordinate>

is the part of it that survives averaging: the noise of two devices is independent, so its mean is 0.
What nobody else trained, the upper ranks of a device among low ones for instance, is taken to agree as
far as the rest of its tensor does. Otherwise a rank that few train would look worthless.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from airtune.model.lora import slice_of
from airtune.model.state import GlobalState, Update
from airtune.plan import Floats, ModelShape


def agreement_of(
    updates: Sequence[Update], state: GlobalState, shape: ModelShape
) -> tuple[Floats, Floats]:
    """Return y and |d_i| rms |d_j| of each update, shape (n,); NaN where nobody shares a coordinate.

    Args:
        updates: of one round.
        state: what they started from.
        shape: of the unpruned model.
    """
    if len(updates) < 2:
        return np.full(len(updates), np.nan), np.full(len(updates), np.nan)
    inner, square = np.zeros(len(updates)), np.zeros(len(updates))
    for name, full in state.adapters.items():
        total = torch.zeros(full.shape)
        count = torch.zeros(full.shape)
        changes = []
        for update in updates:
            rank = update.adapters[f"{name[:-1]}A"].shape[0]
            where = slice_of(name, shape, update.kept, rank)
            change = update.adapters[name].float().cpu() - full[where].float()
            total[where] += change
            count[where] += 1.0
            changes.append((where, change))
        for row, (where, change) in enumerate(changes):
            beside = count[where] - 1.0
            others = (total[where] - change) / beside.clamp_min(1.0)
            shared = int((beside > 0).sum())
            if shared:
                inner[row] += float((change * others).sum()) * change.numel() / shared
            square[row] += float(change.square().sum())
    length = np.sqrt(square)
    rms = np.sqrt((square.sum() - square) / (len(updates) - 1))
    return inner, length * rms
