"""Agreement against a plain sum over dense vectors."""

import numpy as np
import pytest
import torch

from airtune.model.agreement import agreement_of
from airtune.model.kept import keep_all
from airtune.model.state import GlobalState, Update
from airtune.plan import Linear, ModelShape

SHAPE = ModelShape(
    family="llama", task="causal-lm", blocks=1, width=4, heads=2, kv_groups=2, head_dim=2, ffn=6,
    vocab=8, tied=True, labels=0, linears=(Linear("up", "width", "ffn"),), gated=False,
    embedding_parameters=1, block_extra_parameters=1, head_parameters=1, head_macs=1,
)  # fmt: skip


def test_agreement_is_the_inner_product_with_the_mean_of_the_others_that_trained_it():
    stream = torch.Generator().manual_seed(0)
    adapters = {"0.up.A": torch.zeros(4, 4), "0.up.B": torch.zeros(6, 4)}
    state, updates, dense = GlobalState(0, adapters, {}), [], []
    for device, rank in enumerate((4, 2, 2)):
        a, b = (torch.randn(rank, 4, generator=stream), torch.randn(6, rank, generator=stream))
        updates.append(Update(device, 0, keep_all(SHAPE), rank, {"0.up.A": a, "0.up.B": b}, {}, 1))
        full = np.full((2, 6, 4), np.nan)
        full[0, :rank, :] = a
        full[1, :, :rank] = b
        dense.append(full)
    found, noise = agreement_of(updates, state, SHAPE)
    for row, mine in enumerate(dense):
        others = [item for place, item in enumerate(dense) if place != row]
        with np.errstate(invalid="ignore"):
            count = np.sum(~np.isnan(others), axis=0)
            mean = np.nansum(others, axis=0) / np.maximum(count, 1)
        # each tensor: what nobody else trained counts as much as what others did
        expected = sum(
            np.nansum((mine * mean)[side])
            * np.sum(~np.isnan(mine[side]))
            / np.sum(~np.isnan(mine[side]) & (count[side] > 0))
            for side in (0, 1)
        )
        assert found[row] == pytest.approx(expected, rel=1e-5)
        rms = np.sqrt(np.mean([np.nansum(item**2) for item in others]))
        assert noise[row] == pytest.approx(np.sqrt(np.nansum(mine**2)) * rms, rel=1e-5)
    assert np.isnan(agreement_of(updates[:1], state, SHAPE)[0]).all()
