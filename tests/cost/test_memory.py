from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from airtune.cost import known_shapes, peak_memory, saved_bytes
from airtune.model.base import base_of
from airtune.model.batch import Batch
from airtune.model.lora import attach, head_of, init_adapters
from airtune.model.loss import batch_losses
from airtune.plan import Workload, whole_model
from airtune.work.network import checkpoint_

BATCH, TOKENS = 2, 16


def batch(labels):
    ids = torch.randint(5, 90, (BATCH, TOKENS))
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    return Batch(ids, mask, torch.zeros(BATCH, dtype=torch.long) if labels else ids)


def kept_by_autograd(network, inputs):
    """Bytes of the storages saved for the backward pass that are no parameters."""
    frozen = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    storages, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            storages[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        batch_losses(network, inputs).sum()
    return sum(storages.values())


def trained(sample, workload):
    base = base_of(sample.build("sdpa"))
    heads = [head_of(base.network, base.family)] if workload.trains_head else []
    lora = attach(
        base.network,
        base.family,
        [init_adapters(sample.shape, workload, seed=0)],
        scale=2.0,
        heads=heads,
    )
    if workload.checkpointing:
        checkpoint_(lora.network)
    return lora.train().network


def test_saved_tensors_are_those_of_autograd_within_a_hundredth(sample, workload_of, plan_of):
    workload = workload_of(sample.shape, trains_head=bool(sample.shape.labels))
    seen = kept_by_autograd(trained(sample, workload), batch(sample.shape.labels))
    expected = saved_bytes(sample.shape, workload, plan_of())[0]
    assert expected == pytest.approx(seen, rel=0.01)


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("llama", ("q_proj", "v_proj")),
        ("llama", ("down_proj",)),
        ("qwen3", ("k_proj",)),
        ("gpt2", ("mlp.c_proj",)),
        ("bert", ("query", "value")),
        ("bert", ("output.dense",)),
    ],
)
def test_saved_tensors_of_some_adapters_are_those_of_autograd(
    name, targets, sample_of, workload_of, plan_of
):
    sample = sample_of(name)
    workload = workload_of(sample.shape, lora_targets=targets)
    seen = kept_by_autograd(trained(sample, workload), batch(sample.shape.labels))
    expected = saved_bytes(sample.shape, workload, plan_of())[0]
    assert expected == pytest.approx(seen, rel=0.01)


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2 classes"])
def test_checkpointing_keeps_the_inputs_of_blocks(name, sample_of, workload_of, plan_of):
    sample = sample_of(name)
    workload = workload_of(sample.shape, checkpointing=True)
    seen = kept_by_autograd(trained(sample, workload), batch(sample.shape.labels))
    expected = saved_bytes(sample.shape, workload, plan_of())[0]
    # indices and labels of a few hundred bytes show beside so little
    assert expected == pytest.approx(seen, rel=0.05)


def test_static_parts_are_counted_to_the_byte(sample_of, workload_of, plan_of):
    shape = sample_of("bert").shape
    workload = workload_of(shape, trains_head=True, lora_targets=("query",), adapter_bytes=2)
    memory = peak_memory(shape, workload, plan_of(2, cut=[0, 1]))
    trained = 2.0 * (3 * 4 * (48 + 48) + 3 * 49)
    assert memory.weights[0] == 4.0 * shape.parameters
    assert memory.adapters.tolist() == [trained, 2.0 * 4 * 96]
    assert memory.gradients.tolist() == memory.adapters.tolist()
    assert memory.optimiser.tolist() == (2 * memory.adapters).tolist()
    assert memory.logits[1] == 0.0


def test_weights_are_those_of_the_sliced_model(sample_of, workload_of, plan_of):
    shape = sample_of("llama").shape
    pruned = peak_memory(shape, workload_of(shape), plan_of(prune_heads=0.5, prune_ffn=0.25))
    block = int(shape.block_parameters(1, 60))
    expected = shape.embedding_parameters + 3 * block + shape.head_parameters
    assert pruned.weights.tolist() == [4.0 * expected]


def test_total_is_the_sum_of_the_parts(sample_of, workload_of, plan_of):
    shape = sample_of("gpt2").shape
    memory = peak_memory(shape, workload_of(shape), plan_of(3, prune_ffn=[0.0, 0.3, 0.6]))
    parts = memory.weights + memory.adapters + memory.gradients
    parts = parts + memory.optimiser + memory.activations + memory.logits
    assert memory.total.tolist() == parts.tolist()


def test_chunked_loss_holds_logits_of_a_chunk(plan_of):
    shape = known_shapes()["qwen2.5-0.5b"]
    whole = peak_memory(shape, FULL, plan_of()).logits[0]
    chunked = peak_memory(shape, replace(FULL, loss_chunk=64), plan_of()).logits[0]
    assert whole - chunked == 8 * (4 * 256 - 64) * shape.vocab


def test_quantised_base_of_seven_billion_fits_where_the_plain_one_does_not(plan_of):
    shape = known_shapes()["llama-2-7b"]
    half = replace(FULL, dtype_bytes=2, base_bits=16, checkpointing=True, loss_chunk=256)
    gib = 1024**3
    assert 13 * gib < peak_memory(shape, half, plan_of()).total[0] < 15 * gib
    assert peak_memory(shape, replace(half, base_bits=4), plan_of()).total[0] < 6 * gib


FULL = Workload(4, 256, local_steps=1, rank=8, lora_targets=("q_proj", "v_proj"))


@given(
    tokens=st.integers(1, 512),
    batch=st.integers(1, 8),
    change=st.sampled_from(["tokens", "batch", "rank", "prune_heads", "prune_ffn"]),
)
def test_memory_rises_with_work_and_falls_with_pruning(tokens, batch, change):
    shape = known_shapes()["tinyllama-1.1b"]
    workload = replace(FULL, tokens=tokens, batch=batch)
    plan = whole_model(np.arange(1), rank=8, local_steps=1, share=np.ones(1))
    plain = peak_memory(shape, workload, plan).total[0]
    if change in ("tokens", "batch"):
        more = replace(workload, **{change: getattr(workload, change) + 1})
        assert peak_memory(shape, more, plan).total[0] > plain
    elif change == "rank":
        assert peak_memory(shape, workload, replace(plan, rank=plan.rank + 1)).total[0] > plain
    else:
        less = replace(plan, **{change: np.array([0.5])})
        assert peak_memory(shape, workload, less).total[0] < plain


@given(st.integers(2, 512))
def test_checkpointing_never_needs_more(tokens):
    shape = known_shapes()["qwen2.5-0.5b"]
    workload = replace(FULL, tokens=tokens, loss_chunk=32)
    plan = whole_model(np.arange(1), rank=8, local_steps=1, share=np.ones(1))
    plain = peak_memory(shape, workload, plan).total
    assert peak_memory(shape, replace(workload, checkpointing=True), plan).total <= plain
