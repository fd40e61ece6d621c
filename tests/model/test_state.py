from dataclasses import replace

import torch

from airtune.model.lora import attach
from airtune.model.loss import batch_losses
from airtune.model.state import current_base, initial_state


def test_the_first_state_has_fresh_adapters_and_the_head_that_is_trained(base, workload_of):
    workload = workload_of(base.shape)
    state = initial_state(base, workload, seed=0)
    assert state.round == 0
    assert not any(value.any() for name, value in state.adapters.items() if name.endswith(".B"))
    trained = sum(tensor.numel() for tensor in state.head.values())
    assert trained == base.shape.trained_head_parameters


def test_what_was_merged_counts_in_the_base(base, workload_of, make_batch):
    state = initial_state(base, workload_of(base.shape), seed=0)
    assert current_base(base, state) is base
    stream = torch.Generator().manual_seed(0)
    adapters = {k: v + torch.rand(v.shape, generator=stream) for k, v in state.adapters.items()}
    names = {key[:-2] for key in adapters}
    merged = {name: 0.5 * adapters[f"{name}.B"] @ adapters[f"{name}.A"] for name in names}
    batch = make_batch(base)
    found = batch_losses(current_base(base, replace(state, merged=merged)).network, batch)
    lora = attach(base.network, base.family, [adapters], scale=0.5)
    torch.testing.assert_close(found, batch_losses(lora.network, batch), atol=1e-4, rtol=1e-5)
