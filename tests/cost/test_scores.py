"""Scores that are measured while training cost what they take."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from airtune.cost import train_flops, upload_bytes


def test_scores_are_sent_for_every_structure_that_is_kept(sample_of, workload_of, plan_of):
    shape = sample_of("llama").shape
    plain = workload_of(shape)
    plan = plan_of(2, prune_heads=np.array([0.0, 0.5]), prune_ffn=np.array([0.0, 0.25]))
    more = upload_bytes(shape, replace(plain, scores="activation"), plan)
    counts = shape.blocks * np.array([2 + 80, 1 + 60])
    np.testing.assert_array_equal(more - upload_bytes(shape, plain, plan), 4 * counts)


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2"])
def test_scores_from_gradients_cost_what_torch_counts(sample_of, workload_of, plan_of, name):
    from airtune.model.base import base_of
    from airtune.model.kept import keep_all
    from airtune.model.lora import attach, init_adapters
    from airtune.model.sensitivity import tracker

    sample = sample_of(name)
    shape, base = sample.shape, base_of(sample.build())
    plain = workload_of(shape)
    lora = attach(base.network, base.family, [init_adapters(shape, plain, 0)], scale=1.0)
    for layer in lora.layers.values():
        layer.a.grad, layer.b.grad = torch.ones_like(layer.a), torch.ones_like(layer.b)
    watch = tracker("lora-gradient", lora, shape, keep_all(shape), [None])
    with FlopCounterMode(display=False) as counter:
        watch.after(torch.tensor([True]))
    more = train_flops(shape, replace(plain, scores="gradient"), plan_of())
    assert more - train_flops(shape, plain, plan_of()) == pytest.approx(counter.get_total_flops())
